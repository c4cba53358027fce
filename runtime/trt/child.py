"""Builds a plan in a process of its own.

The builder's memory goes back to the system when it is done, which on a Jetson is the GPU's memory too; and when the
kernel kills it, or it crashes, that is one line here and not the end of the program.
"""

from __future__ import annotations

import multiprocessing
import signal
from multiprocessing.connection import Connection
from typing import Any

from runtime.trt.library import import_tensorrt, killed_error
from runtime.trt.plan_request import BuiltPlan, PlanRequest
from segcore.errors import InputError


def build_apart(request: PlanRequest) -> BuiltPlan:
    """Runs `runtime.trt.plan.build_plan` in a child process.

    Raises:
        InputError: it cannot be built, or the child died.
    """
    answer = run_apart(_build_plan, request, what=request.onnx.name)
    built: BuiltPlan = answer
    return built


def run_apart(function: Any, argument: Any, *, what: str) -> Any:
    """`function(argument)` in a child process; both must be importable and picklable.

    Args:
        function: of a module's top level.
        argument: its only one.
        what: an error calls the work.

    Raises:
        InputError: the function raised it, or its process died.
    """
    # Not fork, which would copy a CUDA context, and that does not survive it.
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=_send_result, args=(function, argument, theirs))
    child.start()
    theirs.close()  # so that the child's death ends our wait
    try:
        kind, answer = ours.recv()
        child.join()
    except EOFError:
        child.join()
        if (child.exitcode or 0) > 0:  # it ended by itself, with a traceback; below 0 a signal ended it
            raise RuntimeError(f"building {what} failed; the builder's traceback is above") from None
        raise killed_error(child.exitcode or 0, file=what) from None
    finally:
        child.kill()  # where we were interrupted; else it is over already
        child.join()
        ours.close()
    if kind == "input":
        raise InputError(answer)
    return answer


def _send_result(function: Any, argument: Any, connection: Connection) -> None:
    # Ctrl-C is the parent's to handle, which then kills this process: an exception inside TensorRT's C++ would abort.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        connection.send(("ok", function(argument)))
    except InputError as error:
        connection.send(("input", str(error)))
    finally:
        connection.close()


def _build_plan(request: PlanRequest) -> BuiltPlan:
    import_tensorrt()
    from runtime.trt.plan import build_plan

    return build_plan(request)
