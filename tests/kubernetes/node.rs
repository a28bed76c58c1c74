//! Nodes that take no new pods for a while.

use crate::kubectl;

/// Takes no new pods while it lives, however that ends.
pub(crate) struct Cordoned(String);

impl Cordoned {
    pub(crate) fn new(node: &str) -> Self {
        kubectl::text(kubectl::kubectl().args(["cordon", node]));
        Self(node.to_owned())
    }
}

impl Drop for Cordoned {
    fn drop(&mut self) {
        drop(kubectl::kubectl().args(["uncordon", &self.0]).output());
    }
}
