//! Operators that only passes make.

use super::*;

gaps! {
    DimVector
}
