//! Sequences and optionals.

use super::*;

gaps! {
    ConcatFromSequence, Optional, OptionalGetElement, OptionalHasElement, SequenceAt, SequenceConstruct, SequenceEmpty, SequenceErase,
    SequenceInsert, SequenceLength, SequenceMap, SplitToSequence
}
