"""Names by which a run's folder tells functions apart."""

from collections.abc import Callable


def of(function: Callable) -> str:
    """Returns a function's name, or the `repr` of a callable object, such as `drops(at=(140,), factor=0.1)`.

    Args:
      function: defined at the top of a module or class, or an instance of a frozen dataclass.

    Raises:
      ValueError: if that is no lasting name, because it holds an address or does not say what the function closes over.
    """
    name = getattr(function, "__qualname__", None) or repr(function)
    if "<" in name:
        raise ValueError(
            f"{name} has no name that says what it computes; define it at the top of a module, or make it a frozen "
            "dataclass with __call__ and its settings as fields"
        )
    return name
