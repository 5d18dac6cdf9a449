"""A module that cannot be imported, because of something that it imports itself."""

import no_such_dependency

engine = no_such_dependency.engine
