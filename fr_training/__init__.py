"""Face recognition with real and generated data: align, mix, train, test, study."""
