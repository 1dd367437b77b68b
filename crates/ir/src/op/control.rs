//! Control flow: If, Loop, Scan.

use super::*;

gaps! {
    If, Loop, Scan
}
