//! What lies behind an error.

use std::error::Error;
use std::iter::successors;

/// The causes of an error, from the nearest to the first; the error itself is not among them.
pub fn causes<'a>(error: &'a (dyn Error + 'a)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    successors(error.source(), |&cause| cause.source())
}
