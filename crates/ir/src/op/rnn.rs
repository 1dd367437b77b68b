//! Recurrent networks over a sequence.

use super::*;

gaps! {
    GRU, LSTM, RNN
}
