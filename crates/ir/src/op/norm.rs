//! Normalisations.

use super::*;

gaps! {
    BatchNormalization, GroupNormalization, InstanceNormalization, LRN, LayerNormalization, LpNormalization, MeanVarianceNormalization, RMSNormalization
}
