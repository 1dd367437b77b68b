//! Losses.

use super::*;

gaps! {
    NegativeLogLikelihoodLoss, SoftmaxCrossEntropyLoss
}
