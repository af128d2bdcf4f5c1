"""Factories: callables of somebody's own that make a model or a data set, by their names.

`package.module:name` is imported, also from the current folder; `path/to/file.py:name` is read from
that file, which may import its neighbours.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from pruneflow.errors import InputError, first_line, user_path

_FACTORY = re.compile(r"(?P<module>.+\.py|[^\W\d]\w*(\.[^\W\d]\w*)*):(?P<name>[^\W\d]\w*(\.\w+)*)")
# Prefixes of model and data set names, which are no modules.
_PREFIXES = ("hf:", "timm:")


def is_factory(name: str) -> bool:
    """Whether a name is that of a factory: `package.module:name` or `path/to/file.py:name`."""
    return not name.startswith(_PREFIXES) and _FACTORY.fullmatch(name) is not None


def load_factory(parameter: str, name: str) -> Callable[..., Any]:
    """The factory that a parameter names.

    Raises:
        InputError: a module, file or name that is not there, cannot be imported or called.
    """
    module, attribute = _parts(parameter, name)
    value: Any = module
    for part in attribute.split("."):
        if not hasattr(value, part):
            raise InputError(f"{parameter}={name!r}: {name.rpartition(':')[0]} has no {attribute}")
        value = getattr(value, part)
    if not (inspect.isclass(value) or inspect.isfunction(value) or inspect.ismethod(value)):
        kind = type(value).__name__
        raise InputError(f"{parameter}={name!r} is a {kind}: it should be a function or a class")
    return value


def call(parameter: str, name: str, *arguments: Any, **named: Any) -> Any:
    """What a factory makes of some arguments; whatever it raises is one line."""
    factory = load_factory(parameter, name)
    try:
        return factory(*arguments, **named)
    except Exception as error:  # somebody's own code
        kind = type(error).__name__
        raise InputError(f"{parameter}={name!r} raised {kind}: {first_line(error)}") from None


def accepted(parameter: str, name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Those of some options that a factory has parameters of these names for."""
    try:
        known = inspect.signature(load_factory(parameter, name)).parameters
    except ValueError:  # of what is written in C
        return {}
    return {option: value for option, value in options.items() if option in known}


def name_of(parameter: str, factory: Callable[..., Any]) -> str:
    """The name by which a callable can be imported again.

    Raises:
        InputError: a lambda or an inner function, which has no such name.
    """
    module = getattr(factory, "__module__", None)
    attribute = getattr(factory, "__qualname__", None)
    value: Any = sys.modules.get(str(module))
    for part in str(attribute).split("."):
        value = getattr(value, part, None)
    if value is not factory:
        shown = attribute or type(factory).__name__
        raise InputError(
            f"{parameter}={shown} cannot be imported again: define it at the top of a module"
        )
    return f"{module}:{attribute}"


def source_hash(parameter: str, name: str) -> str:
    """Hash of the source of the file that a factory is in; of its own source in a notebook."""
    module, attribute = _parts(parameter, name)
    path = getattr(module, "__file__", None)
    if path is not None and Path(path).suffix == ".py":
        source = Path(path).read_bytes()
    else:
        try:
            source = inspect.getsource(load_factory(parameter, name)).encode()
        except (OSError, TypeError):
            source = attribute.encode()
    return hashlib.sha256(source).hexdigest()[:16]


def _parts(parameter: str, name: str) -> tuple[ModuleType, str]:
    """The module that a factory's name begins with, and the rest of the name."""
    match = _FACTORY.fullmatch(name)
    if match is None:
        valid = "package.module:name or path/to/file.py:name"
        raise InputError(f"{parameter}={name!r} is not valid: it should be {valid}")
    where, attribute = match["module"], match["name"]
    if where.endswith(".py"):
        return _read(parameter, name, where), attribute
    before = list(sys.path)
    sys.path.append(str(Path.cwd()))
    try:
        return importlib.import_module(where), attribute
    except Exception as error:  # of the module itself, or what it imports
        reason = f"{where} cannot be imported ({type(error).__name__}: {first_line(error)})"
        way_out = "install it, put its folder on PYTHONPATH, or name the file: path/to/file.py:name"
        raise InputError(f"{parameter}={name!r}: {reason}; {way_out}") from None
    finally:
        sys.path[:] = before


def _read(parameter: str, name: str, where: str) -> ModuleType:
    """The module that a file holds, imported once as long as the file stays as it is."""
    path = user_path(parameter, where)
    if not path.is_file():
        raise InputError(f"{parameter}={name!r}: there is no file {where} in {Path.cwd()}")
    path = path.resolve()
    content = hashlib.sha256(str(path).encode() + path.read_bytes()).hexdigest()[:16]
    known = f"{re.sub(r'[^A-Za-z0-9_]', '_', path.stem)}_{content}"
    if known in sys.modules:
        return sys.modules[known]
    spec = importlib.util.spec_from_file_location(known, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    before = list(sys.path)
    sys.path.insert(0, str(path.parent))
    sys.modules[known] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # somebody's own code
        del sys.modules[known]
        reason = f"cannot be imported ({type(error).__name__}: {first_line(error)})"
        raise InputError(f"{parameter}={name!r}: {where} {reason}") from None
    finally:
        sys.path[:] = before
    return module
