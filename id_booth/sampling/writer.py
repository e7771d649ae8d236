"""Images on their way to the disk while the next batch computes."""

from collections import deque
from concurrent.futures import ThreadPoolExecutor

from id_booth.sampling.provenance import append_metadata, png_chunks
from utils.errors import UserError, one_line
from utils.images import save_png


class WriteFailed(UserError):
    """An image could not be written; going on would fail too."""


class SampleWriter:
    """Encodes and writes images in background threads; metadata lines follow the images they describe.

    Use as a context manager: leaving it waits for what is under way. An error in a thread (a full disk) is
    raised as WriteFailed by a later call. At most ``waiting`` images are kept in memory; ``taken`` is how
    many there have been.
    """

    def __init__(self, threads=2, waiting=64):
        self.pool = ThreadPoolExecutor(threads, thread_name_prefix="writer")
        self.waiting, self.pending, self.taken = waiting, deque(), 0

    def put(self, item, image):
        """Take over one image (uint8 RGB (H, W, 3)) of an ``Item``."""
        while len(self.pending) >= self.waiting:
            self.settle(self.waiting // 2)
        self.taken += 1
        self.pending.append((item, self.pool.submit(save_png, item.path, image, png_chunks(item.record))))

    def settle(self, remaining=0):
        """Wait until at most ``remaining`` images are under way, and note the finished ones."""
        written = []
        try:
            while len(self.pending) > remaining:
                item, future = self.pending.popleft()
                future.result()
                written.append(item)
        except UserError as error:
            raise WriteFailed(str(error)) from error
        except OSError as error:
            raise WriteFailed(f"{item.path}: cannot be written ({one_line(error)})") from error
        finally:
            by_folder = {}
            for item in written:
                by_folder.setdefault(item.path.parent.parent, []).append(item.record)
            for folder, records in by_folder.items():
                append_metadata(folder, records)

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        try:
            if kind is None:
                self.settle()
        finally:
            # Images under way are finished; their lines come from themselves (provenance.finish_metadata).
            self.pool.shutdown(cancel_futures=True)
