"""Objects in MongoDB, or in what speaks its protocol."""

from grape.errors import UsageError

try:
    import pymongo as pymongo
except ImportError:
    raise UsageError("storage 'mongodb' needs the package pymongo: pip install 'grape-engine[storage]'") from None
