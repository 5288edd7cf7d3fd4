"""The driver: one C function that starts a run of launches, and two that look after prepared memory. Compiled once.

`void driver(int64_t *run, int64_t threads)` with, in words of 8 bytes,

    run    steps, number of steps, patches, number of patches, bases, whether any step is worth threads
    step   function, words, work, grain, multiple                              (an array of these)
    patch  index of a base, bytes beyond it, address of the word to write      (an array of these)

First `*address = bases[index] + bytes` for every patch: addresses that change from call to call. Then for every step
`function(words, low, high)`, so that [low, high) covers [0, work). Steps run in order; one step's parts run on at most `threads`
threads of the OpenMP pool that torch uses, in one parallel region for the whole run, with a barrier between steps that need one.
Each part of a step has a thread of its own, so that parts may wait for each other (routines/recurrent.py does).

`int64_t unchanged(void **bytes, char *values, int64_t count)` is 1 where `*bytes[k] == values[k]` for every k < count, else 0.
`void touch(void *memory, int64_t bytes)` makes the system provide that memory, and changes nothing there, whoever else writes.
"""

from __future__ import annotations

import hashlib
import threading

from dlcompiler.codegen.cache import Store
from dlcompiler.codegen.cpu.object_file import LoadedObject

STEP_WORDS = 5
PATCH_WORDS = 3
RUN_WORDS = 6

PATCHES = """
llvm.func internal @patch(%run: !llvm.ptr) {
  %zero = arith.constant 0 : i64
  %one = arith.constant 1 : i64
  %patches_at = llvm.getelementptr %run[2] : (!llvm.ptr) -> !llvm.ptr, i64
  %patches = llvm.load %patches_at : !llvm.ptr -> !llvm.ptr
  %count_at = llvm.getelementptr %run[3] : (!llvm.ptr) -> !llvm.ptr, i64
  %count = llvm.load %count_at : !llvm.ptr -> i64
  %bases_at = llvm.getelementptr %run[4] : (!llvm.ptr) -> !llvm.ptr, i64
  %bases = llvm.load %bases_at : !llvm.ptr -> !llvm.ptr
  scf.for %i = %zero to %count step %one : i64 {
    %patch = llvm.getelementptr %patches[%i] : (!llvm.ptr, i64) -> !llvm.ptr, !llvm.array<3 x i64>
    %index = llvm.load %patch : !llvm.ptr -> i64
    %bytes_at = llvm.getelementptr %patch[1] : (!llvm.ptr) -> !llvm.ptr, i64
    %bytes = llvm.load %bytes_at : !llvm.ptr -> i64
    %word_at = llvm.getelementptr %patch[2] : (!llvm.ptr) -> !llvm.ptr, i64
    %word = llvm.load %word_at : !llvm.ptr -> !llvm.ptr
    %base_at = llvm.getelementptr %bases[%index] : (!llvm.ptr, i64) -> !llvm.ptr, i64
    %base = llvm.load %base_at : !llvm.ptr -> i64
    %address = arith.addi %base, %bytes : i64
    llvm.store %address, %word : i64, !llvm.ptr
  }
  llvm.return
}
"""

# Does the part of one step that belongs to one of `team` threads. Gives the number of threads that have a part.
PART = """
llvm.func internal @part(%step: !llvm.ptr, %thread: i64, %team: i64) {
  %zero = arith.constant 0 : i64
  %work_at = llvm.getelementptr %step[2] : (!llvm.ptr) -> !llvm.ptr, i64
  %work = llvm.load %work_at : !llvm.ptr -> i64
  %multiple_at = llvm.getelementptr %step[4] : (!llvm.ptr) -> !llvm.ptr, i64
  %multiple = llvm.load %multiple_at : !llvm.ptr -> i64
  %parts = llvm.call @parts(%step, %team) : (!llvm.ptr, i64) -> i64
  %share = arith.ceildivsi %work, %parts : i64
  %vectors = arith.ceildivsi %share, %multiple : i64
  %chunk = arith.muli %vectors, %multiple : i64
  %low = arith.muli %thread, %chunk : i64
  %end = arith.addi %low, %chunk : i64
  %high = arith.minsi %end, %work : i64
  %some = arith.cmpi slt, %low, %high : i64
  scf.if %some {
    %function = llvm.load %step : !llvm.ptr -> !llvm.ptr
    %words_at = llvm.getelementptr %step[1] : (!llvm.ptr) -> !llvm.ptr, i64
    %words = llvm.load %words_at : !llvm.ptr -> !llvm.ptr
    llvm.call %function(%words, %low, %high) : !llvm.ptr, (!llvm.ptr, i64, i64) -> ()
  }
  llvm.return
}
llvm.func internal @parts(%step: !llvm.ptr, %team: i64) -> i64 {
  %one = arith.constant 1 : i64
  %work_at = llvm.getelementptr %step[2] : (!llvm.ptr) -> !llvm.ptr, i64
  %work = llvm.load %work_at : !llvm.ptr -> i64
  %grain_at = llvm.getelementptr %step[3] : (!llvm.ptr) -> !llvm.ptr, i64
  %grain = llvm.load %grain_at : !llvm.ptr -> i64
  %worth = arith.ceildivsi %work, %grain : i64
  %most = arith.minsi %worth, %team : i64
  %parts = arith.maxsi %most, %one : i64
  llvm.return %parts : i64
}
"""

SERIAL = """
llvm.func internal @serial(%run: !llvm.ptr) {
  %zero = arith.constant 0 : i64
  %one = arith.constant 1 : i64
  %steps = llvm.load %run : !llvm.ptr -> !llvm.ptr
  %count_at = llvm.getelementptr %run[1] : (!llvm.ptr) -> !llvm.ptr, i64
  %count = llvm.load %count_at : !llvm.ptr -> i64
  scf.for %i = %zero to %count step %one : i64 {
    %step = llvm.getelementptr %steps[%i] : (!llvm.ptr, i64) -> !llvm.ptr, !llvm.array<5 x i64>
    llvm.call @part(%step, %zero, %one) : (!llvm.ptr, i64, i64) -> ()
  }
  llvm.return
}
"""

# Every thread of the team walks over all steps. Between two steps that only thread 0 has a part of, no barrier is needed.
TEAM = """
llvm.func @GOMP_parallel(!llvm.ptr, !llvm.ptr, i32, i32)
llvm.func @GOMP_barrier()
llvm.func @omp_get_thread_num() -> i32
llvm.func @omp_get_num_threads() -> i32
llvm.func internal @team(%run: !llvm.ptr) {
  %zero = arith.constant 0 : i64
  %one = arith.constant 1 : i64
  %thread_i32 = llvm.call @omp_get_thread_num() : () -> i32
  %thread = arith.extsi %thread_i32 : i32 to i64
  %team_i32 = llvm.call @omp_get_num_threads() : () -> i32
  %team = arith.extsi %team_i32 : i32 to i64
  %steps = llvm.load %run : !llvm.ptr -> !llvm.ptr
  %count_at = llvm.getelementptr %run[1] : (!llvm.ptr) -> !llvm.ptr, i64
  %count = llvm.load %count_at : !llvm.ptr -> i64
  %last = scf.for %i = %zero to %count step %one iter_args(%parts_before = %one) -> (i64) : i64 {
    %step = llvm.getelementptr %steps[%i] : (!llvm.ptr, i64) -> !llvm.ptr, !llvm.array<5 x i64>
    %parts = llvm.call @parts(%step, %team) : (!llvm.ptr, i64) -> i64
    %either = arith.maxsi %parts, %parts_before : i64
    %shared = arith.cmpi sgt, %either, %one : i64
    %follows = arith.cmpi sgt, %i, %zero : i64
    %wait = arith.andi %shared, %follows : i1
    scf.if %wait {
      llvm.call @GOMP_barrier() : () -> ()
    }
    llvm.call @part(%step, %thread, %team) : (!llvm.ptr, i64, i64) -> ()
    scf.yield %parts : i64
  }
  llvm.return
}
llvm.func internal @driver(%run: !llvm.ptr, %threads: i64) {
  %one = arith.constant 1 : i64
  %zero = arith.constant 0 : i64
  %no_flags = arith.constant 0 : i32
  llvm.call @patch(%run) : (!llvm.ptr) -> ()
  %worth_at = llvm.getelementptr %run[5] : (!llvm.ptr) -> !llvm.ptr, i64
  %worth = llvm.load %worth_at : !llvm.ptr -> i64
  %any = arith.cmpi ne, %worth, %zero : i64
  %several = arith.cmpi sgt, %threads, %one : i64
  %parallel = arith.andi %any, %several : i1
  scf.if %parallel {
    %team = llvm.mlir.addressof @team : !llvm.ptr
    %count = arith.trunci %threads : i64 to i32
    llvm.call @GOMP_parallel(%team, %run, %count, %no_flags) : (!llvm.ptr, !llvm.ptr, i32, i32) -> ()
  } else {
    llvm.call @serial(%run) : (!llvm.ptr) -> ()
  }
  llvm.return
}
"""

WITHOUT_THREADS = """
llvm.func internal @driver(%run: !llvm.ptr, %threads: i64) {
  llvm.call @patch(%run) : (!llvm.ptr) -> ()
  llvm.call @serial(%run) : (!llvm.ptr) -> ()
  llvm.return
}
"""


UNCHANGED = """
llvm.func internal @unchanged(%bytes: !llvm.ptr, %values: !llvm.ptr, %count: i64) -> i64 {
  %zero = arith.constant 0 : i64
  %one = arith.constant 1 : i64
  %same = scf.for %k = %zero to %count step %one iter_args(%before = %one) -> (i64) : i64 {
    %at = llvm.getelementptr %bytes[%k] : (!llvm.ptr, i64) -> !llvm.ptr, !llvm.ptr
    %place = llvm.load %at : !llvm.ptr -> !llvm.ptr
    %now = llvm.load %place : !llvm.ptr -> i8
    %value_at = llvm.getelementptr %values[%k] : (!llvm.ptr, i64) -> !llvm.ptr, i8
    %value = llvm.load %value_at : !llvm.ptr -> i8
    %equal = arith.cmpi eq, %now, %value : i8
    %bit = arith.extui %equal : i1 to i64
    %both = arith.andi %bit, %before : i64
    scf.yield %both : i64
  }
  llvm.return %same : i64
}
"""
# Adds 0 to a byte of every page: a plain store could undo somebody else's.
TOUCH = """
llvm.func internal @touch(%memory: !llvm.ptr, %bytes: i64) {
  %zero = arith.constant 0 : i64
  %page = arith.constant 4096 : i64
  %nothing = arith.constant 0 : i8
  scf.for %k = %zero to %bytes step %page : i64 {
    %at = llvm.getelementptr %memory[%k] : (!llvm.ptr, i64) -> !llvm.ptr, i8
    %before = llvm.atomicrmw add %at, %nothing monotonic : !llvm.ptr, i8
  }
  llvm.return
}
"""
FUNCTIONS = ("driver", "unchanged", "touch")


def driver_text(threads: bool = True) -> str:
    """The driver's module; without `threads` it runs everything on the calling thread and needs no OpenMP runtime."""
    return "module {" + PATCHES + PART + SERIAL + (TEAM if threads else WITHOUT_THREADS) + UNCHANGED + TOUCH + "}\n"


_compiled: list[LoadedObject] = []
_lock = threading.Lock()


def driver_names() -> dict[str, str]:
    """Each of FUNCTIONS --> what it is called among compiled functions, which says what it does."""
    from dlcompiler.codegen.cpu.jit import libgomp

    digest = hashlib.sha256(driver_text(threads=bool(libgomp())).encode()).hexdigest()[:24]
    return {name: f"{name}_{digest}" for name in FUNCTIONS}


def compile_driver(store: Store | None = None) -> LoadedObject:
    """The driver's code, with the functions of FUNCTIONS; from `store` if it is there. It lives as long as the process.

    Where torch brings no libgomp along, a driver without threads.
    """
    from dlcompiler.codegen.cpu.jit import libgomp
    from dlcompiler.codegen.cpu.machine_code import find_functions

    with _lock:
        if not _compiled:
            libraries = libgomp()
            text = driver_text(threads=bool(libraries))
            names = driver_names()
            for name, full in names.items():
                text = text.replace(f"@{name}(", f"@{full}(")
            found = find_functions(list(names.values()), lambda given: [(text, dict.fromkeys(given, ""))], store, libraries)
            addresses = {name: found[full].address for name, full in names.items()}
            _compiled.append(LoadedObject(addresses, [function.code for function in found.values()]))
        return _compiled[0]


def driver_address(store: Store | None = None) -> int:
    """Address of the C function `driver`, for `ir.program.Code`."""
    return compile_driver(store).address("driver")
