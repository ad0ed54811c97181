//! The names of a run's interfaces.

use std::sync::{Mutex, PoisonError};

use capture_flow::frame::IfaceId;

/// Interfaces that one run can tell apart; a hostile capture file can name more.
const MOST: usize = 4096;

/// Interfaces by number, in the order in which they were met.
#[derive(Debug, Default)]
pub struct InterfaceNames(Mutex<Vec<String>>);

impl InterfaceNames {
    /// The number of an interface, which is new if its name is. Names beyond those that can be
    /// told apart share the last number.
    #[must_use]
    pub fn number(&self, name: &str) -> IfaceId {
        let mut names = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let known = names.iter().position(|known| known == name);
        let number = known.unwrap_or_else(|| {
            if names.len() < MOST {
                names.push(name.to_owned());
            }
            names.len() - 1
        });
        IfaceId(u16::try_from(number).unwrap_or(u16::MAX))
    }

    /// All names so far, by number.
    #[must_use]
    pub fn all(&self) -> Vec<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_has_one_number() {
        let names = InterfaceNames::default();
        assert_eq!(names.number("a"), IfaceId(0));
        assert_eq!(names.number("b"), IfaceId(1));
        assert_eq!(names.number("a"), IfaceId(0));
        for n in 0..5000 {
            let _ = names.number(&n.to_string());
        }
        assert_eq!(names.all().len(), MOST);
        assert_eq!(names.number("one more"), IfaceId(4095));
    }
}
