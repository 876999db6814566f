//! Our own operators for tract.
