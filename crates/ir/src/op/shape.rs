//! Operators that move, cut, repeat or describe elements without computing with them.

use super::*;

gaps! {
    CenterCropPad, Concat, ConstantOfShape, DepthToSpace, Expand, EyeLike, Flatten, Pad,
    Range, Reshape, ReverseSequence, Shape, Size, Slice, SpaceToDepth, Split,
    Squeeze, Tile, Transpose, Trilu, Unsqueeze
}
