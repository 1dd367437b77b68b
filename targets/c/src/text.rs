//! C expressions as text with the precedence of their outermost operator, so that parentheses stand where they are needed.

/// How tightly an expression binds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Names, constants, calls, elements.
    Atom,
    /// Signs and casts.
    Unary,
    /// `* / %`
    Product,
    /// `+ -`
    Sum,
    /// Comparisons, `&&` and the like.
    Other,
    /// `c ? a : b`.
    Choice,
}

/// An expression.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Text {
    /// Its text.
    pub text: String,
    /// How tightly it binds.
    pub level: Level,
}

impl Text {
    /// A name, constant, call or element.
    pub fn atom(text: impl Into<String>) -> Text {
        Text { text: text.into(), level: Level::Atom }
    }
    /// A constant that may have a sign.
    pub fn number((text, sign): (String, bool)) -> Text {
        Text { text, level: if sign { Level::Unary } else { Level::Atom } }
    }
    /// An expression of another level.
    pub fn new(level: Level, text: impl Into<String>) -> Text {
        Text { text: text.into(), level }
    }
    /// A call.
    pub fn call(function: &str, arguments: &[&Text]) -> Text {
        let list: Vec<&str> = arguments.iter().map(|a| a.text.as_str()).collect();
        Text::atom(format!("{function}({})", list.join(", ")))
    }
    /// Its text where at most `level` may stand.
    pub fn at(&self, level: Level) -> String {
        if self.level <= level { self.text.clone() } else { format!("({})", self.text) }
    }
    /// As an operand of an operator other than those of arithmetic.
    pub fn operand(&self) -> String {
        self.at(Level::Unary)
    }
    /// `a op b` for `+ - *`, and `/ %`.
    pub fn arithmetic(op: char, a: &Text, b: &Text) -> Text {
        let (level, right) = match op {
            '+' => (Level::Sum, Level::Product),
            '-' => (Level::Sum, Level::Product),
            _ => (Level::Product, Level::Unary),
        };
        Text::new(level, format!("{} {op} {}", a.at(level), b.at(right)))
    }
    /// `a op b` with the parentheses that compilers ask for.
    pub fn infix(op: &str, a: &Text, b: &Text) -> Text {
        Text::new(Level::Other, format!("{} {op} {}", a.comparand(), b.comparand()))
    }
    /// As an operand of a comparison: sums need no parentheses.
    fn comparand(&self) -> String {
        self.at(Level::Sum)
    }
    /// `(type)a`.
    pub fn cast(ty: &str, a: &Text) -> Text {
        Text::new(Level::Unary, format!("({ty}){}", a.operand()))
    }
    /// `-a`.
    pub fn minus(a: &Text) -> Text {
        Text::new(Level::Unary, format!("-{}", a.at(Level::Atom)))
    }
    /// `!a`.
    pub fn not(a: &Text) -> Text {
        Text::new(Level::Unary, format!("!{}", a.at(Level::Atom)))
    }
    /// `c ? a : b`.
    pub fn choose(c: &Text, a: &Text, b: &Text) -> Text {
        let (c, a, b) = (c.at(Level::Other), a.at(Level::Sum), b.at(Level::Sum));
        Text::new(Level::Choice, format!("{c} ? {a} : {b}"))
    }
}
