//! Windows and Fourier transforms.

use super::*;

gaps! {
    BlackmanWindow, DFT, HammingWindow, HannWindow, MelWeightMatrix, STFT
}
