"""The kernel that the keeper starts: IPython's, which leaves its children to the keeper."""

from ipykernel.ipkernel import IPythonKernel


class KeptKernel(IPythonKernel):
    """ipykernel asks all children to end and waits for each.  One of multiprocessing's, which keeps
    account of shared memory, is deaf to that: every notebook with processes of its own would take
    half a minute to close.  It ends by itself once the kernel has gone; others the keeper stops."""

    async def _progressively_terminate_all_children(self) -> None:
        """Nothing: see `keeper.stop_descendants`."""
