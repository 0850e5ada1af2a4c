"""What the kernel forbids to the process that runs an answer: needs no privileges, and cannot be taken back.

Three layers, each set up in the process itself before any foreign code: limits on resources (POSIX);
Landlock, which leaves a few folders to be read and nothing to be written (Linux 5.13 and later); seccomp,
which refuses the system calls for networks, new processes, signals to others, and administration (Linux on
x86-64 and 64-bit ARM).
"""

import ctypes
import os
import platform
import struct
import sys
from pathlib import Path

OPEN_FILES, LINUX = 128, sys.platform.startswith("linux")
_NO_NEW_PRIVILEGES, _SECCOMP, _DEATH_SIGNAL = 38, 22, 1  # prctl
_ARCHITECTURE = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
_CLONE, _CLONE3, _THREAD = (56, 220), 435, 0x10000
_OWN = {"kill": (62, 129), "tgkill": (234, 131), "prlimit64": (302, 261)}  # allowed on the process itself
_REFUSED = """
fork 57 - vfork 58 - execve 59 221 execveat 322 281 ptrace 101 117 process_vm_readv 310 270
process_vm_writev 311 271 tkill 200 130 rt_sigqueueinfo 129 138 rt_tgsigqueueinfo 297 240
pidfd_send_signal 424 424 pidfd_open 434 434 pidfd_getfd 438 438 setpriority 141 140
sched_setaffinity 203 122 sched_setscheduler 144 119 sched_setattr 314 274 socket 41 198 socketpair 53 199
connect 42 203 bind 49 200 listen 50 201 memfd_create 319 279 memfd_secret 447 447 io_uring_setup 425 425
io_uring_enter 426 426 io_uring_register 427 427 shmget 29 194 shmat 30 196 shmctl 31 195 msgget 68 186
semget 64 190 mq_open 240 180 mount 165 40 umount2 166 39 pivot_root 155 41 chroot 161 51 setns 308 268
unshare 272 97 mount_setattr 442 442 move_mount 429 429 open_tree 428 428 fsopen 430 430 fsconfig 431 431
fsmount 432 432 fspick 433 433 bpf 321 280 perf_event_open 298 241 userfaultfd 323 282 keyctl 250 219
add_key 248 217 request_key 249 218 init_module 175 105 finit_module 313 273 delete_module 176 106
kexec_load 246 104 kexec_file_load 320 294 reboot 169 142 swapon 167 224 swapoff 168 225
settimeofday 164 170 clock_settime 227 112 adjtimex 159 171 clock_adjtime 305 266 sethostname 170 161
setdomainname 171 162 acct 163 89 quotactl 179 60 syslog 103 116 vhangup 153 58 personality 135 92
iopl 172 - ioperm 173 - process_madvise 440 440 migrate_pages 256 238 move_pages 279 239 chmod 90 -
fchmod 91 52 fchmodat 268 53 fchmodat2 452 452 chown 92 - lchown 94 - fchown 93 55 fchownat 260 54
utime 132 - utimes 235 - utimensat 280 88 futimesat 261 - setxattr 188 5 lsetxattr 189 6 fsetxattr 190 7
removexattr 197 14 lremovexattr 198 15 fremovexattr 199 16 mknod 133 - mknodat 259 33 truncate 76 45
setuid 105 146 setgid 106 144 setreuid 113 145 setregid 114 143 setresuid 117 147 setresgid 119 149
setgroups 116 159 capset 126 91 name_to_handle_at 303 264 open_by_handle_at 304 265
"""


class ConfinementError(OSError):
    """The kernel offered a protection and then refused it. Nothing is run in that case."""


def protections() -> dict[str, str]:
    """What holds on this machine: name to one phrase. Asked once, and printed before grading."""
    found = {}
    if os.name == "posix":
        found["limits"] = "time, memory, files and output are limited"
    if abi := landlock_abi():
        found["landlock"] = f"no file can be written, and only the course can be read (Landlock {abi})"
    if _can_filter():
        found["seccomp"] = "no network, no new process, no signal to another (seccomp)"
    return found


def landlock_abi() -> int:
    return max(0, _libc().syscall(444, None, ctypes.c_size_t(0), ctypes.c_uint32(1))) if LINUX else 0


def _can_filter() -> bool:
    if not LINUX or platform.machine() not in _ARCHITECTURE:
        return False
    return "Seccomp:" in Path("/proc/self/status").read_text(encoding="utf-8", errors="replace")


def die_with_parent() -> None:
    """When the process that started this one ends, however it ends, so does this one."""
    if LINUX:
        _libc().prctl(_DEATH_SIGNAL, 9, 0, 0, 0)


def confine(seconds: int, memory: int, readable: list[Path]) -> None:
    """Limit this process for good. memory: bytes beyond what it has now. Raises `ConfinementError`."""
    abi, can_filter = landlock_abi(), _can_filter()
    limit(seconds, memory, processes=not can_filter)
    if abi or can_filter:
        _prctl(_NO_NEW_PRIVILEGES, 1, 0)
    if abi:
        _landlock(abi, readable)
    if can_filter:
        _filter()


def limit(seconds: int, memory: int, processes: bool) -> None:
    """Limits on resources. processes: forbid new ones this way too (not when root), and with them threads."""
    import resource

    seconds = max(1, int(seconds))
    wanted = {
        "CPU": (seconds, seconds + 1),
        "CORE": (0, 0),
        "FSIZE": (0, 0),
        "NOFILE": (OPEN_FILES, OPEN_FILES),
    }
    if LINUX:
        now = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[0]) * os.sysconf(
            "SC_PAGE_SIZE"
        )
        wanted["AS"] = (now + memory, now + memory)
    if processes:
        wanted["NPROC"] = (0, 0)
    for name, values in wanted.items():
        if hasattr(resource, f"RLIMIT_{name}"):
            hard = resource.getrlimit(getattr(resource, f"RLIMIT_{name}"))[1]
            values = tuple(v if hard == resource.RLIM_INFINITY else min(v, hard) for v in values)
            resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), values)


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _done(result: int, what: str) -> int:
    if result < 0:
        raise ConfinementError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")
    return result


def _prctl(option: int, one, two) -> None:
    result = _libc().prctl(
        option, ctypes.c_ulong(one), two if two else ctypes.c_ulong(0), *[ctypes.c_ulong(0)] * 2
    )
    _done(result, f"prctl {option}")


def _landlock(abi: int, readable: list[Path]) -> None:
    """Forbid all on files but reading below `readable`; networks, signals and sockets to others too."""
    files = (1 << (13 + (abi >= 2) + (abi >= 3) + (abi >= 5))) - 1
    rules = struct.pack("=QQQ", files, 3, 3)[: 24 if abi >= 6 else 16 if abi >= 4 else 8]
    ruleset = _done(_libc().syscall(444, rules, ctypes.c_size_t(len(rules)), ctypes.c_uint32(0)), "Landlock")
    for path in [*readable, Path("/dev/null")]:
        try:
            handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError:
            continue  # not on this machine
        rights = (
            0b1100 if path.is_dir() else 0b0110 if path == Path("/dev/null") else 0b0100
        )  # read and list; read and write
        rule = struct.pack("=Qi", rights, handle)
        _done(
            _libc().syscall(445, ctypes.c_int(ruleset), ctypes.c_int(1), rule, ctypes.c_uint32(0)),
            f"Landlock, {path}",
        )
        os.close(handle)
    _done(_libc().syscall(446, ctypes.c_int(ruleset), ctypes.c_uint32(0)), "Landlock")
    os.close(ruleset)


def _filter() -> None:
    column, architecture = _ARCHITECTURE[platform.machine()]
    word = iter(_REFUSED.split())
    refused = [(name, (x86, arm)[column]) for name, x86, arm in zip(word, word, word, strict=True)]
    load, equal, at_least, has = 0x20, 0x15, 0x35, 0x45  # classic BPF
    allow, refuse, unknown, end = (
        0x7FFF0000,
        0x50001,
        0x50026,
        0x80000000,
    )  # EPERM; ENOSYS, so that libc falls back
    give = lambda value: (0x06, 0, 0, value)
    lines = [(load, 0, 0, 4), (equal, 1, 0, architecture), give(end), (load, 0, 0, 0)]
    lines += [(at_least, 0, 1, 0x40000000), give(refuse)]  # the x32 calls
    for _, number in refused:
        if number != "-":
            lines += [(equal, 0, 1, int(number)), give(refuse)]
    lines += [(equal, 0, 1, _CLONE3), give(unknown)]
    lines += [
        (equal, 0, 4, _CLONE[column]),
        (load, 0, 0, 16),
        (has, 0, 1, _THREAD),
        give(allow),
        give(refuse),
    ]
    for numbers in _OWN.values():  # the first argument must be this process, or 0
        lines += [
            (equal, 0, 5, numbers[column]),
            (load, 0, 0, 16),
            (equal, 1, 0, os.getpid()),
            (equal, 0, 1, 0),
        ]
        lines += [give(allow), give(refuse)]
    lines.append(give(allow))
    code = b"".join(struct.pack("=HBBI", *line) for line in lines)
    held = ctypes.create_string_buffer(code, len(code))

    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("lines", ctypes.c_void_p))

    program = Program(len(lines), ctypes.addressof(held))
    _prctl(_SECCOMP, 2, ctypes.byref(program))
