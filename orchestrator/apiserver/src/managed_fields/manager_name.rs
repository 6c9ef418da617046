//! The name under which a request owns fields.

/// Bytes that a manager's name may have. Source: meta/v1 `FieldManagerMaxLength`.
pub const MAX_MANAGER_BYTES: usize = 128;

/// The request's `fieldManager`, or without one the first part of its `User-Agent`, as `curl` of `curl/8.1`.
pub fn manager_name(field_manager: &str, user_agent: &str) -> String {
    if !field_manager.is_empty() {
        return field_manager.to_owned();
    }
    let mut name = String::new();
    for letter in user_agent
        .split('/')
        .next()
        .unwrap_or_default()
        .chars()
        .filter(|letter| is_printable(*letter))
    {
        if name.len() + letter.len_utf8() > MAX_MANAGER_BYTES {
            break;
        }
        name.push(letter);
    }
    name
}

/// Checks the parameter `fieldManager`.
///
/// # Errors
/// The detail of the field error (`Invalid` of `PatchOptions`, `CreateOptions`, ...).
pub fn check_manager_name(field_manager: &str) -> Result<(), String> {
    if field_manager.len() > MAX_MANAGER_BYTES {
        return Err(format!("Too long: may not be more than {MAX_MANAGER_BYTES} bytes"));
    }
    match field_manager.char_indices().find(|(_, letter)| !is_printable(*letter)) {
        Some((at, letter)) => {
            let code = u32::from(letter);
            Err(format!(
                "Invalid value: {field_manager:?}: invalid character U+{code:04X} (at position {at})"
            ))
        }
        None => Ok(()),
    }
}

/// Close to upstream's notion: no control characters, no white space but the plain one.
fn is_printable(letter: char) -> bool {
    letter == ' ' || !(letter.is_control() || letter.is_whitespace())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_from_the_parameter_or_the_agent() {
        assert_eq!(manager_name("me", "curl/8.1"), "me");
        assert_eq!(manager_name("", "kubectl-client/v1.36 (linux/amd64)"), "kubectl-client");
        assert_eq!(manager_name("", "a\tb\u{7}c/1"), "abc");
        assert_eq!(manager_name("", ""), "");
        assert_eq!(manager_name("", &"ä".repeat(100)).len(), MAX_MANAGER_BYTES);
    }

    #[test]
    fn bad_parameters_are_refused() {
        assert_eq!(check_manager_name("my manager"), Ok(()));
        assert!(check_manager_name(&"x".repeat(129)).unwrap_err().contains("128"));
        assert!(
            check_manager_name("a\nb")
                .unwrap_err()
                .contains("U+000A (at position 1)")
        );
    }
}
