//! File names of outputs, which may be named anything.

use std::collections::HashSet;

/// A file name for each output, without ending: its name with what file names may not hold replaced, and a number behind it where another one has that
/// name already (in any case, since some file systems make no difference).
pub fn file_names<'a>(names: impl IntoIterator<Item = &'a str>) -> Vec<String> {
    let names: Vec<&str> = names.into_iter().collect();
    let plain = |name: &str| -> String {
        let kept = |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '_' };
        if name.is_empty() { "_".to_owned() } else { name.chars().map(kept).collect() }
    };
    // Names that need no change keep theirs.
    let mut taken: HashSet<String> = HashSet::new();
    let mut out = vec![String::new(); names.len()];
    for changed in [false, true] {
        for (name, file) in names.iter().zip(&mut out) {
            let first = plain(name);
            if (first != *name) != changed {
                continue;
            }
            let numbered = (1..).map(|k| if k == 1 { first.clone() } else { format!("{first}_{k}") });
            *file = numbered.into_iter().find(|f| taken.insert(f.to_lowercase())).expect("there is always another number");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::file_names;

    #[test]
    fn each_output_has_a_name_of_its_own() {
        assert_eq!(file_names(["a/b", "a_b", "a b", "c"]), ["a_b_2", "a_b", "a_b_3", "c"]);
        assert_eq!(file_names(["Y", "y"]), ["Y", "y_2"]);
        assert_eq!(file_names(["größe", "x:0"]), ["gr__e", "x_0"]);
        assert_eq!(file_names(["", "_"]), ["__2", "_"]);
    }
}
