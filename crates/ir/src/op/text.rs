//! Strings and host-only conversions.

use super::*;

gaps! {
    ImageDecoder, RegexFullMatch, StringConcat, StringNormalizer, StringSplit, TfIdfVectorizer, CastMap, CategoryMapper,
    DictVectorizer, LabelEncoder, ZipMap
}
