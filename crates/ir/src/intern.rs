//! Hash-consing: equal nodes become one leaked allocation, so that equality is pointer equality and copies are free.
//!
//! Interned nodes live as long as the process. They describe index arithmetic and scalar bodies, which are small; a
//! process that compiles thousands of models grows by kilobytes for each.

use std::collections::HashSet;
use std::hash::Hash;
use std::sync::{LazyLock, Mutex};

/// One table of interned values.
pub struct Interner<T: 'static>(LazyLock<Mutex<HashSet<&'static T>>>);

impl<T: Eq + Hash + Send + Sync + 'static> Interner<T> {
    /// An empty table.
    pub const fn new() -> Self {
        Interner(LazyLock::new(|| Mutex::new(HashSet::new())))
    }

    /// The one stored value equal to `value`.
    pub fn intern(&self, value: T) -> &'static T {
        let mut table = self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some(found) = table.get(&value) {
            return found;
        }
        let leaked: &'static T = Box::leak(Box::new(value));
        table.insert(leaked);
        leaked
    }
}
