//! Identifiers of C from names of people: legal, distinct, and none that the language or its library has.

use std::collections::HashSet;

/// Words that are no names of members in C or C++.
const KEYWORDS: &str = "alignas alignof and and_eq asm auto bitand bitor bool break case catch char class compl concept const const_cast \
    consteval constexpr constinit continue co_await co_return co_yield decltype default delete do double dynamic_cast else enum explicit \
    export extern false float for friend goto if inline int long mutable namespace new noexcept not not_eq nullptr operator or or_eq \
    private protected public register reinterpret_cast requires restrict return short signed sizeof static static_assert static_cast \
    struct switch template this thread_local throw true try typedef typeid typename typeof union unsigned using virtual void volatile \
    wchar_t while xor xor_eq linux unix";

/// What printed code uses of the C library, and names of its own that a variable must not hide.
const LIBRARY: &str = "memcpy memmove memset fabs fabsf floor floorf ceil ceilf trunc truncf rint rintf sqrt sqrtf fmod fmodf fma exp log \
    sin cos tan asin acos atan sinh cosh tanh asinh acosh atanh erf log1p expm1 pow atan2 NAN INFINITY inputs outputs arena state weights \
    memory status scratch floor_div floor_mod add_sat mul_sat";

/// A name as an identifier of C: other characters become `_`, and it begins with a letter.
pub fn identifier(name: &str) -> String {
    let plain: String = name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
    // Two underscores in a row are reserved in C++.
    let parts: Vec<&str> = plain.split('_').filter(|p| !p.is_empty()).collect();
    match parts.join("_") {
        text if text.is_empty() => "model".to_owned(),
        text if text.starts_with(|c: char| c.is_ascii_digit()) => format!("model_{text}"),
        text => text,
    }
}

/// Is it a word of C or C++?
pub fn is_keyword(name: &str) -> bool {
    KEYWORDS.split_whitespace().any(|k| k == name)
}

/// Does a dtype's name end it, as that of a helper function?
fn is_helper(name: &str) -> bool {
    let ending = name.rsplit('_').next().unwrap_or_default();
    crate::vectors::is_vector_name(name) || name.contains('_') && (ending == "bits" || ending.parse::<infc_ir::DType>().is_ok())
}

/// The names in use in a function.
#[derive(Clone, Debug, Default)]
pub struct Scope(HashSet<String>);

impl Scope {
    /// An identifier like `name` that nothing else has, from now on in use.
    pub fn fresh(&mut self, name: &str) -> String {
        let plain = identifier(name);
        let taken = |n: &str| self.0.contains(n) || is_keyword(n) || is_helper(n) || LIBRARY.split_whitespace().any(|k| k == n);
        let found = std::iter::once(plain.clone()).chain((2..).map(|k| format!("{plain}{k}"))).find(|n| !taken(n));
        let found = found.unwrap_or(plain);
        self.0.insert(found.clone());
        found
    }
}

/// Any text inside a C comment.
pub fn comment(text: &str) -> String {
    let plain: String = text.chars().map(|c| if c.is_control() || c == '\\' { ' ' } else { c }).collect();
    plain.replace("*/", "* /").replace("/*", "/ *").replace("??", "? ?")
}

/// A C string with these bytes.
pub fn literal(text: &str) -> String {
    let escaped = text.bytes().filter(|&b| b != 0).map(|b| match b {
        b'"' | b'\\' | b'?' => format!("\\{}", char::from(b)),
        b' '..=b'~' => char::from(b).to_string(),
        _ => format!("\\{b:03o}"),
    });
    format!("\"{}\"", escaped.collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_identifiers() {
        for (name, expected) in [
            ("digits", "digits"),
            ("input.1", "input_1"),
            ("__a--b__", "a_b"),
            ("3d net", "model_3d_net"),
            ("", "model"),
            ("\u{e9}t\u{e9}", "t"),
            ("\u{6a21}\u{578b}", "model"),
        ] {
            assert_eq!(identifier(name), expected, "{name}");
        }
    }

    #[test]
    fn fresh_names_hide_nothing() {
        let mut s = Scope::default();
        let names = ["k", "k", "int", "exp", "max_f32", "k2", "arena"].map(|n| s.fresh(n));
        assert_eq!(names, ["k", "k2", "int2", "exp2", "max_f322", "k22", "arena2"]);
    }

    #[test]
    fn comments_and_strings_do_not_end_early() {
        assert_eq!(comment("a */ b\n/* c ??/ \\"), "a * / b / * c ? ?/  ");
        assert_eq!(literal("a \"b\"\\ ?\n\u{e9}"), "\"a \\\"b\\\"\\\\ \\?\\012\\303\\251\"");
    }
}
