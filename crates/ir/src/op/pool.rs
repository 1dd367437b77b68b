//! Pooling and resampling.

use super::*;

gaps! {
    AffineGrid, AveragePool, GlobalAveragePool, GlobalLpPool, GlobalMaxPool, GridSample, LpPool, MaxPool,
    MaxRoiPool, MaxUnpool, Resize, RoiAlign
}
