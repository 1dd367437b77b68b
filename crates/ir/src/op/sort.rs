//! Sorting and selection: results whose size depends on data.

use super::*;

gaps! {
    Compress, NonMaxSuppression, NonZero, TopK, Unique
}
