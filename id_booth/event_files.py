"""TensorBoard's event files, which by themselves are named after the machine that writes them."""

import re
from pathlib import Path
from types import SimpleNamespace

from tensorboard.summary.writer import event_file_writer
from torch.utils.tensorboard import SummaryWriter

HOST = "host"
NAME = re.compile(r"(events\.out\.tfevents\.\d+)\..+(\.\d+\.\d+)")


def event_writer(folder, **options):
    """TensorBoard's SummaryWriter on a folder whose files, those of earlier runs too, name no machine."""
    for file in Path(folder).glob("events.out.tfevents.*"):
        if parts := NAME.fullmatch(file.name):
            file.rename(file.with_name(f"{parts[1]}.{HOST}{parts[2]}"))
    named = event_file_writer.socket
    event_file_writer.socket = SimpleNamespace(gethostname=lambda: HOST)
    try:
        return SummaryWriter(str(folder), **options)
    finally:
        event_file_writer.socket = named
