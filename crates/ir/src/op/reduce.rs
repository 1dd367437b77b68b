//! Reductions over axes, running reductions, softmax.

use super::*;

gaps! {
    ArgMax, ArgMin, CumProd, CumSum, Hardmax, LogSoftmax, ReduceL1, ReduceL2,
    ReduceLogSum, ReduceLogSumExp, ReduceMax, ReduceMean, ReduceMin, ReduceProd, ReduceSum, ReduceSumSquare,
    Softmax
}
