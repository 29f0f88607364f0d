"""Reads the pickles inside checkpoints without importing, calling or creating anything that they name.

    read = read_pickle(file)
    read.root, read.storages, read.foreign

A pickle is a program. Every class and function that one names becomes an inert stand-in here, so the program
runs and does nothing. Names that a checkpoint has no business with (`os.system`, `builtins.eval`, a function
of an unknown package) raise HostilePickle as soon as they are named; damage raises TornPickle.
"""

from __future__ import annotations

import pickle
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO

#: Bytes for one element, by the name of the storage class. torch/storage.py and torch/_utils.py (PyTorch).
STORAGE_ELEMENT_BYTES: Mapping[str, int] = {
    "ComplexDoubleStorage": 16, "ComplexFloatStorage": 8, "DoubleStorage": 8, "LongStorage": 8,
    "FloatStorage": 4, "IntStorage": 4, "QInt32Storage": 4, "HalfStorage": 2, "BFloat16Storage": 2,
    "ShortStorage": 2, "CharStorage": 1, "ByteStorage": 1, "BoolStorage": 1, "QInt8Storage": 1,
    "QUInt8Storage": 1, "QUInt4x2Storage": 1, "QUInt2x4Storage": 1, "UntypedStorage": 1,
}  # fmt: skip

#: Functions and classes that are called while a checkpoint is loaded. The first part is what PyTorch itself
#: permits under `weights_only=True` (torch/_weights_only_unpickler.py); the rest is data of the standard
#: library and NumPy that optimizers, arguments and random states hold.
_KNOWN: Mapping[str, str] = {
    "torch": "Size Tensor device Generator",
    "torch._tensor": "_rebuild_from_type_v2",
    "torch._utils": (
        "_rebuild_tensor _rebuild_tensor_v2 _rebuild_tensor_v3 _rebuild_parameter "
        "_rebuild_parameter_with_state _rebuild_qtensor "
        "_rebuild_sparse_tensor _rebuild_sparse_csr_tensor _rebuild_nested_tensor "
        "_rebuild_device_tensor_from_numpy _rebuild_device_tensor_from_cpu_tensor _rebuild_wrapper_subclass "
        "_rebuild_meta_tensor_no_storage _rebuild_xla_tensor"
    ),
    "torch.storage": "TypedStorage UntypedStorage",
    "torch.serialization": "_get_layout",
    "torch.nn.parameter": "Parameter Buffer UninitializedParameter",
    "collections": "OrderedDict Counter defaultdict deque",
    "builtins": (
        "set frozenset list dict tuple int float bool str bytes bytearray complex slice range object type"
    ),
    "copyreg": "_reconstructor __newobj__ __newobj_ex__",
    "numpy": (
        "ndarray dtype bool bool_ int8 int16 int32 int64 uint8 uint16 uint32 uint64 float16 float32 float64 "
        "complex64 complex128 str_ bytes_ void datetime64 timedelta64"
    ),
    "numpy.core.multiarray": "_reconstruct scalar",
    "numpy._core.multiarray": "_reconstruct scalar",
    "numpy.core.numeric": "_frombuffer",
    "numpy._core.numeric": "_frombuffer",
    "numpy.random.bit_generator": "__pyx_unpickle_SeedSequence",
    "numpy.random._pickle": "__randomstate_ctor __generator_ctor __bit_generator_ctor",
    "argparse": "Namespace",
    "types": "SimpleNamespace",
    "datetime": "datetime date time timedelta timezone",
    "uuid": "UUID",
    "decimal": "Decimal",
    "pathlib": "Path PosixPath PurePosixPath PurePath WindowsPath PureWindowsPath",
    "pathlib._local": "Path PosixPath PurePosixPath PurePath",
    "typing": "Any Union Optional List Dict Tuple",
    "functools": "partial",
}
_KNOWN_NAMES = frozenset((module, name) for module, names in _KNOWN.items() for name in names.split())

#: Packages whose classes (never functions) are met in real checkpoints: distributed metadata, optimizer
#: wrappers, training arguments. Compared as dotted prefixes.
_KNOWN_CLASSES_OF = (
    "torch.distributed.checkpoint", "torch.distributed.tensor", "torch.distributed._tensor",
    "torch.distributed._shard", "torch.distributed.fsdp", "torch.distributed.device_mesh",
    "torch.nn.modules", "torch.nn.parallel", "torch.optim", "torch.amp", "torch.cuda.amp",
    "torch.torch_version", "torch.utils.data", "numpy.random", "megatron", "transformers", "deepspeed",
    "lightning", "pytorch_lightning", "lightning_fabric", "omegaconf", "accelerate", "peft", "trl", "apex",
    "nemo", "fairseq", "metaseq", "transformer_engine", "torchao", "bitsandbytes", "olmo", "olmo_core",
    "torchtitan", "nanotron", "numpy.dtypes",
)  # fmt: skip

#: Functions that modules and hyperparameters hold (`activation=F.relu`): named, never called while loading.
_NAMED_ONLY = ("torch.nn.functional", "torch._C._nn", "torch.nn.init")

#: Python 2 spellings that protocol 2 still writes.
_OLD_MODULES = {"__builtin__": "builtins", "copy_reg": "copyreg"}
#: Whatever of these is not in the table above has no business in a checkpoint.
_NEVER = frozenset(sys.stdlib_module_names) | {"torch", "numpy", "posix", "nt", "pip", "setuptools"}
#: Larger than any index or argument pickle that was seen; the tensors themselves lie outside the pickle.
PICKLE_CAP_BYTES = 1 << 30


class HostilePickle(Exception):
    """The pickle names something that no checkpoint needs. The text says what."""


class TornPickle(Exception):
    """The pickle breaks off or is damaged. The text says how."""


class _Inert(type):
    """The kind of every stand-in: it can be called only as far as the name is known.

    `_called` is `freely` for the names in the table, `as-enum` (one plain value, how an enum's member is
    written) for classes of known packages, `never` for all others.
    """

    _called = "never"
    _label = "object"

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        as_enum = len(args) == 1 and not kwargs and isinstance(args[0], (int, str, float, tuple, type(None)))
        if cls._called == "freely" or (cls._called == "as-enum" and as_enum):
            make: Any = cls.__new__
            return make(cls, *args, **kwargs)
        raise HostilePickle(f"it calls {cls._label}, which is not on the list of known names")

    def __setattr__(cls, name: str, value: Any) -> None:
        raise HostilePickle(f"it changes {cls._label}")


class Stub(metaclass=_Inert):
    """An object that the pickle describes: its class's name, arguments and state, and no behaviour."""

    __slots__ = ("args", "state")
    args: tuple[Any, ...]
    state: Any

    def __new__(cls, *args: Any, **_: Any) -> Stub:
        new: Stub = object.__new__(cls)
        new.args = args
        new.state = None
        return new

    def __setstate__(self, state: Any) -> None:
        self.state = state

    # what APPENDS, SETITEMS and ADDITEMS do to list-, dict- and set-like objects; the items are not needed
    def append(self, item: Any) -> None: ...
    def extend(self, items: Any) -> None: ...
    def add(self, item: Any) -> None: ...
    def __setitem__(self, key: Any, value: Any) -> None: ...

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        # only `functools.partial` is called again by a loader, and nobody needs what it would give
        raise HostilePickle(f"it calls an object of {type(self)._label}")

    @property
    def label(self) -> str:
        return type(self)._label

    def get(self, name: str, default: Any = None) -> Any:
        """An attribute of the described object."""
        return self.state.get(name, default) if isinstance(self.state, dict) else default


class Mapped(dict[Any, Any], metaclass=_Inert):
    """An OrderedDict or another dictionary of the pickle."""

    _called = "freely"
    _label = "dict"

    def __new__(cls, *args: Any, **_: Any) -> Mapped:
        new = super().__new__(cls)
        if args and isinstance(args[0], dict):
            new.update(args[0])
        elif args and isinstance(args[0], (list, tuple)):
            # protocol 0 and 1 wrote OrderedDict([[key, value], ...])
            new.update({p[0]: p[1] for p in args[0] if isinstance(p, (list, tuple)) and len(p) == 2})
        return new

    def __setstate__(self, state: Any) -> None:
        """Attributes such as `_metadata` of a state dict; nobody needs them."""


@dataclass(frozen=True, slots=True)
class Storage:
    """A block of numbers that the pickle refers to by `key`; `size_bytes` is None for an unknown kind."""

    key: str
    count: int
    size_bytes: int | None


@dataclass(slots=True)
class PickleRead:
    """What a pickle holds: its top object, the storages it needs, the classes of others that it names.

    `nested` are whole saved files inside it, which a loader would load in turn, and without any guard.
    """

    root: Any = None
    storages: dict[str, Storage] = field(default_factory=dict)
    foreign: set[str] = field(default_factory=set)
    nested: list[bytes] = field(default_factory=list)


class _Reader(pickle.Unpickler):
    def __init__(self, file: BinaryIO, allow: tuple[str, ...], into: PickleRead) -> None:
        super().__init__(file, encoding="latin-1")
        self._allow = allow
        self._into = into
        self._made: dict[tuple[str, str], Any] = {}

    def find_class(self, module: str, name: str, /) -> Any:
        key = (module, name)
        if key not in self._made:
            self._made[key] = self._stand_in(_OLD_MODULES.get(module, module), name)
        return self._made[key]

    def _stand_in(self, module: str, name: str) -> Any:
        label = f"{module}.{name}"[:120]
        if (module, name) in (("collections", "OrderedDict"), ("builtins", "dict")):
            return Mapped
        if (module, name) == ("torch", "Size"):
            # a tuple of numbers; the loader needs nothing else of it
            return tuple
        if (module, name) == ("_codecs", "encode"):
            # how protocol 2 writes bytes: encode("text", "latin1")
            return _encode
        if (module, name) == ("builtins", "getattr"):
            return _attribute
        if (module, name) == ("torch.storage", "_load_from_bytes"):
            return self._into.nested.append
        if _is_known(module, name) or any(_inside(module, p) for p in self._allow):
            called = "freely"
        elif _is_class_name(name) and any(_inside(module, p) for p in _KNOWN_CLASSES_OF):
            called = "as-enum"
        elif module in _NAMED_ONLY and name.isidentifier():
            called = "never"
        else:
            called = "never"
            _refuse_or_pass(module, name, label)
            self._into.foreign.add(label)
        return _Inert("Stub", (Stub,), {"__slots__": (), "_called": called, "_label": label})

    def persistent_load(self, pid: Any, /) -> Any:
        # ('storage', <class torch.FloatStorage>, '0', 'cpu', 256[, view])  torch/serialization.py
        if not (isinstance(pid, tuple) and len(pid) >= 5 and pid[0] == "storage"):
            return Stub()
        kind, key, count = pid[1], pid[2], pid[4]
        label = getattr(kind, "_label", "").rpartition(".")[2]
        if isinstance(key, str) and isinstance(count, int) and count >= 0:
            width = STORAGE_ELEMENT_BYTES.get(label)
            storage = Storage(key, count, None if width is None else width * count)
            self._into.storages.setdefault(key, storage)
        return _STORAGE


def _inside(module: str, prefix: str) -> bool:
    return module == prefix or module.startswith(prefix + ".")


def _is_class_name(name: str) -> bool:
    return name.isidentifier() and name.lstrip("_")[:1].isupper()


def _is_known(module: str, name: str) -> bool:
    if (module, name) in _KNOWN_NAMES:
        return True
    if module in ("torch", "torch.cuda", "torch.storage") and name in STORAGE_ELEMENT_BYTES:
        return True
    if module in ("torch", "torch.cuda", "torch.sparse", "torch.cuda.sparse") and _is_class_name(name):
        return name.endswith("Tensor")
    if module == "torch":
        return name.startswith(_DTYPE_PREFIXES) and name.isidentifier()
    return False


def _encode(text: Any, encoding: Any = "latin1") -> bytes:
    if encoding not in ("latin1", "latin-1") or not isinstance(text, str):
        raise HostilePickle("it encodes text as no saved bytes are")
    return text.encode("latin-1")


def _attribute(owner: Any, name: Any) -> Stub:
    """Python 3.11.0 to 3.11.3 wrote an enum's member as `getattr(Class, "NAME")`; it is never called."""
    plain = isinstance(name, str) and name.isidentifier() and not name.startswith("_")
    if not (isinstance(owner, _Inert) and owner is not Mapped and plain):
        raise HostilePickle("it refers to builtins.getattr of something that is no class of a checkpoint")
    return Stub.__new__(Stub, owner, name)


#: torch.float8_e4m3fn, torch.bfloat16, torch.uint4, torch.per_channel_affine: values, not functions
_DTYPE_PREFIXES = (
    "float", "bfloat", "int", "uint", "complex", "bool", "qint", "quint", "bits",
    "half", "double", "long", "short", "per_tensor_", "per_channel_", "strided", "sparse_co", "sparse_cs",
)  # fmt: skip


def _refuse_or_pass(module: str, name: str, label: str) -> None:
    """Raise HostilePickle unless `name` looks like a class of somebody's own training code.

    Such a class may be described (its `__new__` and state), not called: `paramiko.ProxyCommand` is a class
    too, and calling it starts a program.
    """
    if module.partition(".")[0] in _NEVER:
        raise HostilePickle(f"it refers to {label}, which no checkpoint needs")
    if not _is_class_name(name):
        raise HostilePickle(f"it refers to {label}, which is not on the list of known names")


_STORAGE: Any = Stub.__new__(Stub)


def read_pickle(file: BinaryIO, *, allow: Iterable[str] = ()) -> PickleRead:
    """Read one pickle from `file`, which is left after its end.

    `allow` names packages of the site (`mycompany.config`) whose classes and functions are taken as harmless.
    Raises HostilePickle or TornPickle. Nothing is imported and nothing named in the pickle is run.
    """
    read = PickleRead()
    try:
        read.root = _Reader(file, tuple(allow), read).load()
    except HostilePickle:
        raise
    except EOFError as exc:
        raise TornPickle("its pickle breaks off") from exc
    except MemoryError as exc:
        raise TornPickle("its pickle asks for more memory than any index needs") from exc
    except Exception as exc:  # a damaged pickle raises whatever it hits first
        said = str(exc).replace("\n", " ")[:120]
        if "truncated" in said or "Ran out of input" in said:
            raise TornPickle("its pickle breaks off") from exc
        raise TornPickle(f"its pickle is damaged ({type(exc).__name__}: {said})") from exc
    return read
