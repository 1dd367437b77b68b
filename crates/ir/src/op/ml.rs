//! Classical machine learning (`ai.onnx.ml`).

use super::*;

gaps! {
    ArrayFeatureExtractor, Binarizer, FeatureVectorizer, Imputer, LinearClassifier, LinearRegressor, Normalizer, OneHotEncoder,
    SVMClassifier, SVMRegressor, Scaler, TreeEnsemble
}
