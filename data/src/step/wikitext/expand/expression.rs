//! `#expr`: arithmetic by MediaWiki's ranks of operators, all from the left.

use super::numbers::{from_php, to_php};

/// Operators and operands that may wait at once.
const MOST_WAITING: usize = 100;

/// What is wrong with an expression, as it stands behind "Expression error: ".
type Problem = String;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operator {
    Open,
    Negative,
    Positive,
    Unary(Function),
    Exponent,
    Power,
    Times,
    Divide,
    Mod,
    FloatMod,
    Plus,
    Minus,
    Round,
    Equal,
    NotEqual,
    Less,
    Greater,
    LessOrEqual,
    GreaterOrEqual,
    And,
    Or,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Function {
    Not,
    Sin,
    Cos,
    Tan,
    ArcSin,
    ArcCos,
    ArcTan,
    Exp,
    Ln,
    Abs,
    Floor,
    Trunc,
    Ceil,
    Sqrt,
}

impl Operator {
    fn rank(self) -> i32 {
        use Operator::*;
        match self {
            Negative | Positive | Exponent => 10,
            Unary(_) => 9,
            Power => 8,
            Times | Divide | Mod | FloatMod => 7,
            Plus | Minus => 6,
            Round => 5,
            Equal | NotEqual | Less | Greater | LessOrEqual | GreaterOrEqual => 4,
            And => 3,
            Or => 2,
            Open => -1,
        }
    }

    fn is_unary(self) -> bool {
        matches!(self, Self::Negative | Self::Positive | Self::Unary(_))
    }

    /// The operator of a word or sign between operands.
    fn between(word: &str) -> Option<Self> {
        use Operator::*;
        Some(match word {
            "+" => Plus,
            "-" => Minus,
            "*" => Times,
            "/" | "div" => Divide,
            "^" => Power,
            "e" => Exponent,
            "mod" => Mod,
            "fmod" => FloatMod,
            "round" => Round,
            "=" => Equal,
            "<>" | "!=" => NotEqual,
            "<" => Less,
            ">" => Greater,
            "<=" => LessOrEqual,
            ">=" => GreaterOrEqual,
            "and" => And,
            "or" => Or,
            _ => return None,
        })
    }

    /// The operator of a word or sign before its operand.
    fn before(word: &str) -> Option<Self> {
        Some(match word {
            "-" => Self::Negative,
            "+" => Self::Positive,
            word => Self::Unary(match word {
                "not" => Function::Not,
                "sin" => Function::Sin,
                "cos" => Function::Cos,
                "tan" => Function::Tan,
                "asin" => Function::ArcSin,
                "acos" => Function::ArcCos,
                "atan" => Function::ArcTan,
                "exp" => Function::Exp,
                "ln" => Function::Ln,
                "abs" => Function::Abs,
                "floor" => Function::Floor,
                "trunc" => Function::Trunc,
                "ceil" => Function::Ceil,
                "sqrt" => Function::Sqrt,
                _ => return None,
            }),
        })
    }
}

/// The value of an expression as text; empty for an empty one.
///
/// # Errors
/// What is wrong with it.
pub(super) fn evaluate(expression: &str) -> Result<String, Problem> {
    Ok(value(expression)?.map(to_php).unwrap_or_default())
}

/// The value of an expression; none for an empty one.
pub(super) fn value(expression: &str) -> Result<Option<f64>, Problem> {
    let mut operands: Vec<f64> = Vec::new();
    let mut operators: Vec<Operator> = Vec::new();
    let mut expects_operand = true;
    let text = expression
        .replace("&lt;", "<")
        .replace("&gt;", ">")
        .replace("&minus;", "-")
        .replace(['−'], "-");
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        if operands.len() > MOST_WAITING || operators.len() > MOST_WAITING {
            return Err("Stack exhausted.".into());
        }
        let word = next_word(rest)?;
        rest = rest[word.len()..].trim_start();
        let lower = word.to_ascii_lowercase();
        let constant = match lower.as_str() {
            "pi" => Some(std::f64::consts::PI),
            "e" if expects_operand => Some(std::f64::consts::E),
            number if number.starts_with(|c: char| c.is_ascii_digit() || c == '.') => {
                Some(from_php(number))
            }
            _ => None,
        };
        if let Some(number) = constant {
            if !expects_operand {
                return Err("Unexpected number.".into());
            }
            operands.push(number);
            expects_operand = false;
        } else if word == "(" {
            if !expects_operand {
                return Err("Unexpected ( operator.".into());
            }
            operators.push(Operator::Open);
        } else if word == ")" {
            loop {
                match operators.pop() {
                    Some(Operator::Open) => break,
                    Some(operator) => apply(operator, &mut operands)?,
                    None => return Err("Unexpected closing bracket.".into()),
                }
            }
            expects_operand = false;
        } else if expects_operand {
            match Operator::before(&lower) {
                Some(operator) => operators.push(operator),
                None if Operator::between(&lower).is_some() => {
                    return Err(format!("Unexpected {lower} operator."));
                }
                None => return Err(format!("Unrecognized word \"{word}\".")),
            }
        } else {
            let Some(operator) = Operator::between(&lower) else {
                return Err(match Operator::before(&lower) {
                    Some(_) => format!("Unexpected {lower} operator."),
                    None => format!("Unrecognized word \"{word}\"."),
                });
            };
            while let Some(waiting) = operators.pop_if(|other| other.rank() >= operator.rank()) {
                apply(waiting, &mut operands)?;
            }
            operators.push(operator);
            expects_operand = true;
        }
    }
    while let Some(operator) = operators.pop() {
        if operator == Operator::Open {
            return Err("Unclosed bracket.".into());
        }
        apply(operator, &mut operands)?;
    }
    Ok(operands.pop())
}

/// The number, word or sign that `text` begins with.
fn next_word(text: &str) -> Result<&str, Problem> {
    let length = |allowed: fn(char) -> bool| text.find(|c: char| !allowed(c)).unwrap_or(text.len());
    let length = match text.as_bytes() {
        [b'0'..=b'9' | b'.', ..] => length(|c| c.is_ascii_digit() || c == '.'),
        [b'a'..=b'z' | b'A'..=b'Z', ..] => length(|c| c.is_ascii_alphabetic()),
        [b'<', b'=' | b'>', ..] | [b'>', b'=', ..] | [b'!', b'=', ..] => 2,
        [b'+' | b'-' | b'*' | b'/' | b'^' | b'=' | b'<' | b'>' | b'(' | b')', ..] => 1,
        _ => {
            let sign = text.chars().next().unwrap_or_default();
            return Err(format!("Unrecognized punctuation character \"{sign}\"."));
        }
    };
    Ok(&text[..length])
}

fn apply(operator: Operator, operands: &mut Vec<f64>) -> Result<(), Problem> {
    use Operator::*;
    let missing = || "Missing operand.".to_owned();
    let right = operands.pop().ok_or_else(missing)?;
    if operator.is_unary() {
        operands.push(unary(operator, right)?);
        return Ok(());
    }
    let left = operands.pop().ok_or_else(missing)?;
    let zero = || Err("Division by zero.".to_owned());
    let truth = f64::from;
    operands.push(match operator {
        Plus => left + right,
        Minus => left - right,
        Times => left * right,
        Divide if right == 0.0 => return zero(),
        Divide => left / right,
        // Whole numbers, with the sign of the left one.
        Mod if right as i64 == 0 => return zero(),
        Mod => (left as i64).wrapping_rem(right as i64) as f64,
        FloatMod if right == 0.0 => return zero(),
        FloatMod => left % right,
        Power => left.powf(right),
        Exponent => left * 10f64.powf(right),
        Round => round(left, right as i32),
        Equal => truth(left == right),
        NotEqual => truth(left != right),
        Less => truth(left < right),
        Greater => truth(left > right),
        LessOrEqual => truth(left <= right),
        GreaterOrEqual => truth(left >= right),
        And => truth(left != 0.0 && right != 0.0),
        Or => truth(left != 0.0 || right != 0.0),
        Open | Negative | Positive | Unary(_) => return Err(missing()),
    });
    Ok(())
}

fn unary(operator: Operator, value: f64) -> Result<f64, Problem> {
    let in_range = |ok: bool, name: &str| match ok {
        true => Ok(()),
        false => Err(format!("Invalid argument for {name}: < -1 or > 1.")),
    };
    Ok(match operator {
        Operator::Negative => -value,
        Operator::Unary(function) => match function {
            Function::Not => f64::from(value == 0.0),
            Function::Sin => value.sin(),
            Function::Cos => value.cos(),
            Function::Tan => value.tan(),
            Function::ArcSin => {
                in_range((-1.0..=1.0).contains(&value), "asin")?;
                value.asin()
            }
            Function::ArcCos => {
                in_range((-1.0..=1.0).contains(&value), "acos")?;
                value.acos()
            }
            Function::ArcTan => value.atan(),
            Function::Exp => value.exp(),
            Function::Ln if value <= 0.0 => {
                return Err("Invalid argument for ln: <= 0.".into());
            }
            Function::Ln => value.ln(),
            Function::Abs => value.abs(),
            Function::Floor => value.floor(),
            Function::Trunc => value.trunc(),
            Function::Ceil => value.ceil(),
            Function::Sqrt if value < 0.0 => {
                return Err("In sqrt: Result is not a number.".into());
            }
            Function::Sqrt => value.sqrt(),
        },
        _ => value,
    })
}

/// `value` to so many places behind the point, halves away from zero. What is a half but for the last
/// bit counts as one, as in PHP.
fn round(value: f64, places: i32) -> f64 {
    let scale = 10f64.powi(places.clamp(-300, 300));
    let scaled = value * scale;
    let exact: f64 = format!("{scaled:.14e}").parse().unwrap_or(scaled);
    let rounded = exact.round() / scale;
    if rounded.is_finite() { rounded } else { value }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_those_of_mediawiki() {
        for (expression, expected) in [
            ("", ""),
            ("1 + 2 * 3", "7"),
            ("(1 + 2) * 3", "9"),
            ("1 / 3", "0.33333333333333"),
            ("-2^2", "4"),
            ("0 - 2^2", "-4"),
            ("2^3^2", "64"),
            ("30 mod 7", "2"),
            ("-8 mod 3", "-2"),
            ("30.6 mod 7.9", "2"),
            ("30.5 fmod 7", "2.5"),
            ("3.14159 round 2", "3.14"),
            ("1234.5 round -2", "1200"),
            ("1.005 round 2", "1.01"),
            ("-2.5 round 0", "-3"),
            ("7 div 2", "3.5"),
            ("floor 3.7 + ceil 3.2 + trunc -3.7", "4"),
            ("abs -5", "5"),
            ("not 0", "1"),
            ("not 3 + 1", "1"),
            ("1 and 0 or 1", "1"),
            ("3 <> 4", "1"),
            ("3 != 3", "0"),
            ("2 >= 2 and 2 <= 2", "1"),
            ("1e3", "1000"),
            ("1.5e-3", "0.0015"),
            ("e", "2.718281828459"),
            ("pi round 4", "3.1416"),
            ("10^14", "1.0E+14"),
            ("123456789012345", "1.2345678901234E+14"),
            ("0.0000001", "1.0E-7"),
            ("0.0001", "0.0001"),
            ("−3 + 1", "-2"),
            ("1 &lt; 2", "1"),
            ("sqrt 16", "4"),
            ("ln exp 2", "2"),
            ("trunc 1.9", "1"),
            ("2000/4=500", "1"),
            (".5 + 1.", "1.5"),
        ] {
            assert_eq!(evaluate(expression).as_deref(), Ok(expected), "{expression}");
        }
        for (expression, problem) in [
            ("1 / 0", "Division by zero."),
            ("1 mod 0", "Division by zero."),
            ("1 +", "Missing operand."),
            ("1 2", "Unexpected number."),
            ("(1", "Unclosed bracket."),
            ("1)", "Unexpected closing bracket."),
            ("abc", "Unrecognized word \"abc\"."),
            ("1 $ 2", "Unrecognized punctuation character \"$\"."),
            ("* 2", "Unexpected * operator."),
            ("2 (3)", "Unexpected ( operator."),
            ("asin 2", "Invalid argument for asin: < -1 or > 1."),
        ] {
            assert_eq!(evaluate(expression), Err(problem.to_owned()), "{expression}");
        }
        assert!(evaluate(&"(".repeat(1000)).is_err());
    }
}
