"""The error tree.

GeodlError
├── RequestError                 asked wrongly; nothing has started (exit status 2)
│   ├── ModelDefinitionError     the .emd, .dlpk or JSON text cannot be used
│   ├── ModelPackageError        the .dlpk is not a package that may be unpacked
│   ├── ModelFileError           the weights cannot be loaded, or do not do what the definition says
│   ├── ModelArgumentError       --arguments: a name or value that the model does not take
│   ├── UntrustedCodeError       the model brings Python code and was not trusted
│   ├── RasterNotFoundError      no raster at that path
│   ├── RasterInputError         a raster that cannot be used as from or to raster
│   ├── BandCountError           the rasters do not have the bands that the model takes
│   ├── GridMismatchError        the two rasters do not share a grid
│   ├── TileGeometryError        tile size, padding or block size that leave nothing to keep
│   ├── OutputError              the output cannot be written there
│   ├── OutputExistsError        the output is there already
│   ├── DeviceError              the device that was asked for is not there
│   └── MissingDependencyError   an optional library is not installed
└── RunError                     the run failed (exit status 1)
    ├── RasterReadError          a window of a raster could not be read
    ├── InferenceError           the model raised, or answered with something it must not
    │   └── MemoryShortageError  there is not memory enough for what the model was given at once
    ├── BlockFailedError         a block kept failing; says which and why
    ├── SchedulerLostError       the Dask scheduler does not answer any more
    └── WorkerSetupError         a worker could not be made ready for its first block

Every error also derives from the matching built-in, and is made with one string: what was given,
what was needed, what to do. (An exception whose ``__init__`` takes several arguments does not
survive pickling on its way from a worker.)
"""

from __future__ import annotations


class GeodlError(Exception):
    """Base of every error that geodl_dask raises on purpose."""


class RequestError(GeodlError):
    """Asked wrongly: raised before any work starts."""


class ModelDefinitionError(RequestError, ValueError):
    """The model definition cannot be read or used."""


class ModelPackageError(RequestError, ValueError):
    """The model package cannot be unpacked, or must not be."""


class ModelFileError(RequestError, ValueError):
    """The model file cannot be loaded, or does not do what the definition says."""


class ModelArgumentError(RequestError, ValueError):
    """A model argument is unknown, or has a value that the model does not take."""


class UntrustedCodeError(RequestError, PermissionError):
    """The model brings Python code, and the caller has not said that it may run."""


class RasterNotFoundError(RequestError, FileNotFoundError):
    """There is no raster at that path."""


class RasterInputError(RequestError, ValueError):
    """A raster that cannot serve as from raster or to raster."""


class BandCountError(RequestError, ValueError):
    """The rasters do not have the bands that the model takes."""


class GridMismatchError(RequestError, ValueError):
    """The two rasters do not share a grid."""


class TileGeometryError(RequestError, ValueError):
    """Tile size, padding or block size that leave nothing to keep."""


class OutputError(RequestError, ValueError):
    """The output cannot be written under that name."""


class OutputExistsError(RequestError, FileExistsError):
    """The output exists, and overwriting it was not asked for."""


class DeviceError(RequestError, RuntimeError):
    """The device that was asked for is not there."""


class MissingDependencyError(RequestError, ImportError):
    """An optional library is not installed; the message has the install line."""


class RunError(GeodlError):
    """The run failed after it had started."""


class RasterReadError(RunError, OSError):
    """A window of a raster could not be read."""


class InferenceError(RunError, RuntimeError):
    """The model raised, or answered with something that it must not."""


class MemoryShortageError(InferenceError, MemoryError):
    """There is not memory enough for what the model was given at once."""


class BlockFailedError(RunError, RuntimeError):
    """A block kept failing; the message names its position and the cause."""


class SchedulerLostError(RunError, ConnectionError):
    """The Dask scheduler died, or the way to it was cut."""


class WorkerSetupError(RunError, RuntimeError):
    """A worker could not be made ready for its first block; the message names it and the cause."""
