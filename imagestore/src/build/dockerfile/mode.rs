//! Modes of COPY and ADD: `0755`, or the words of chmod: `u=rwX,go=rX`, `+x`, `g-w`.

/// How the modes of copied files change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModeChange {
    /// All of them become this one.
    Octal(u32),
    /// Each changes by these clauses, in order.
    Symbolic(Vec<Clause>),
}

/// `who`, operator, permissions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clause {
    /// The bits that it may touch: 0o700 for `u`, and so on, with the special bit of each.
    pub who: u32,
    /// `+`, `-` or `=`.
    pub operator: char,
    /// What it gives.
    pub what: What,
}

/// The right side of a clause.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// `rwxst` as bits of all three classes; with `X`, execution for directories and what anyone may execute.
    Bits {
        /// The bits.
        bits: u32,
        /// Whether `X` is among them.
        conditional: bool,
    },
    /// The permissions of another class: 6 for `u`, 3 for `g`, 0 for `o`.
    Copy(u32),
}

const USER: u32 = 0o4700;
const GROUP: u32 = 0o2070;
const OTHER: u32 = 0o1007;

impl ModeChange {
    /// Reads a mode as chmod takes it. The error says what is wrong.
    pub fn parse(text: &str) -> Result<ModeChange, String> {
        let wrong = || format!("{text:?} is no mode; it is octal as 0755, or symbolic as u=rwX,go=rX");
        if text.starts_with(|c: char| c.is_ascii_digit()) {
            let mode = u32::from_str_radix(text, 8).map_err(|_| wrong())?;
            return if mode <= 0o7777 { Ok(ModeChange::Octal(mode)) } else { Err(wrong()) };
        }
        let mut clauses = Vec::new();
        for clause in text.split(',') {
            let operators = clause.find(['+', '-', '=']).ok_or_else(wrong)?;
            let mut who = 0;
            for c in clause[..operators].chars() {
                who |= match c {
                    'u' => USER,
                    'g' => GROUP,
                    'o' => OTHER,
                    'a' => USER | GROUP | OTHER,
                    _ => return Err(wrong()),
                };
            }
            let mut rest = &clause[operators..];
            while let Some(operator) = rest.chars().next() {
                let end = rest[1..].find(['+', '-', '=']).map_or(rest.len(), |at| at + 1);
                let what = what(&rest[1..end]).ok_or_else(wrong)?;
                clauses.push(Clause { who: if who == 0 { 0o7777 } else { who }, operator, what });
                rest = &rest[end..];
            }
        }
        Ok(ModeChange::Symbolic(clauses))
    }

    /// The mode that a file of mode `mode` gets; permissions and the three special bits only.
    pub fn apply(&self, mode: u32, directory: bool) -> u32 {
        let clauses = match self {
            ModeChange::Octal(octal) => return *octal,
            ModeChange::Symbolic(clauses) => clauses,
        };
        clauses.iter().fold(mode & 0o7777, |mode, clause| {
            let bits = match clause.what {
                What::Bits { bits, conditional } => {
                    let execute = conditional && (directory || mode & 0o111 != 0);
                    bits | if execute { 0o111 } else { 0 }
                }
                What::Copy(shift) => (mode >> shift & 0o7) * 0o111,
            } & clause.who;
            match clause.operator {
                '+' => mode | bits,
                '-' => mode & !bits,
                // A directory keeps its special bits, as chmod has it.
                _ => mode & !(clause.who & if directory { 0o777 } else { 0o7777 }) | bits,
            }
        })
    }
}

fn what(text: &str) -> Option<What> {
    match text {
        "u" => return Some(What::Copy(6)),
        "g" => return Some(What::Copy(3)),
        "o" => return Some(What::Copy(0)),
        _ => {}
    }
    let (mut bits, mut conditional) = (0, false);
    for c in text.chars() {
        match c {
            'r' => bits |= 0o444,
            'w' => bits |= 0o222,
            'x' => bits |= 0o111,
            'X' => conditional = true,
            's' => bits |= 0o6000,
            't' => bits |= 0o1000,
            _ => return None,
        }
    }
    Some(What::Bits { bits, conditional })
}

#[cfg(test)]
mod tests {
    use super::ModeChange;

    #[test]
    fn modes_change_as_chmod_changes_them() {
        for (change, before, directory, after) in [
            ("0755", 0o600, false, 0o755),
            ("4711", 0o600, false, 0o4711),
            ("u=rwX,go=rX", 0o600, false, 0o644),
            ("u=rwX,go=rX", 0o700, false, 0o755),
            ("u=rwX,go=rX", 0o700, true, 0o755),
            ("+x", 0o644, false, 0o755),
            ("a-w", 0o666, false, 0o444),
            ("g=u", 0o640, false, 0o660),
            ("u+s,o+t", 0o755, false, 0o5755),
            ("u-x+w", 0o500, false, 0o600),
            ("g=", 0o770, false, 0o700),
            ("=r", 0o4777, false, 0o444),
        ] {
            let parsed = ModeChange::parse(change).unwrap();
            assert_eq!(parsed.apply(before, directory), after, "{change} of {before:o}");
        }
    }

    #[test]
    fn what_is_no_mode_is_refused() {
        for text in ["", "9", "77777", "u", "rwx", "u=q", "u+rw,", "0o7", "-1é"] {
            assert!(ModeChange::parse(text).is_err(), "{text}");
        }
    }
}
