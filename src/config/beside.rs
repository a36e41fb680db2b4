//! Data files of an operator's own, beside the configuration file. They need not be there.
//!
//! Easy to get wrong: a file that is there and cannot be read or understood is a problem like any
//! other, never silently left out.

use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;

use super::{Config, FILE_BYTES_MAX, Problem};
use crate::delivery::{Providers, ReplyRules};

/// Well-known receivers and their limits, in front of those that come with the program.
const PROVIDERS: &str = "providers.toml";
/// What replies of receiving servers mean, tried before the rules that come with the program.
const REPLIES: &str = "replies.toml";

/// Adds what lies beside the configuration file `path`.
pub(super) fn add(path: &Path, config: Result<Config, Vec<Problem>>) -> Result<Config, Vec<Problem>> {
    let mut problems = Vec::new();
    let replies = read(&path.with_file_name(REPLIES), ReplyRules::with, &mut problems);
    let providers = read(&path.with_file_name(PROVIDERS), Providers::with, &mut problems);
    match config {
        Ok(mut config) if problems.is_empty() => {
            replies.into_iter().for_each(|rules| config.delivery.replies = rules);
            providers.into_iter().for_each(|known| config.delivery.providers = known);
            Ok(config)
        }
        Ok(_) => Err(problems),
        Err(mut known) => {
            known.append(&mut problems);
            Err(known)
        }
    }
}

/// Reads one of them; `None` if it is not there or not usable.
fn read<T>(
    file: &Path,
    parse: impl FnOnce(&str) -> Result<Arc<T>, String>,
    problems: &mut Vec<Problem>,
) -> Option<Arc<T>> {
    let mut problem =
        |text: String| problems.push(Problem { file: file.to_owned(), line: None, key: String::new(), text });
    match std::fs::metadata(file) {
        Err(error) if error.kind() == ErrorKind::NotFound => return None,
        Ok(found) if found.len() > FILE_BYTES_MAX => {
            problem(format!("is larger than {FILE_BYTES_MAX} bytes"));
            return None;
        }
        _ => {}
    }
    let text = std::fs::read_to_string(file).map_err(|error| format!("cannot be read: {error}"));
    match text.and_then(|text| parse(&text)) {
        Ok(read) => Some(read),
        Err(error) => {
            problem(error);
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::delivery::Phase;

    #[test]
    fn replies_beside_the_configuration_come_first_and_a_broken_file_is_a_problem() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("postern.toml");
        std::fs::write(&path, "hostname = \"mx.example.com\"\n").unwrap();
        let own = folder.path().join(super::REPLIES);
        std::fs::write(&own, "[[rule]]\ncode = \"550\"\nclass = \"temporary\"\naction = \"retry\"\n").unwrap();
        let config = crate::config::load(&path).unwrap();
        let reply = crate::delivery::read_reply("550 5.1.1 gone").unwrap();
        let judged = config.delivery.replies.judge(&reply, Phase::Rcpt, None);
        assert_eq!(judged.class.name(), "temporary");
        std::fs::write(&own, "[[rule]]\naction = 3\n").unwrap();
        let problems = crate::config::load(&path).unwrap_err();
        assert_eq!(problems.len(), 1);
        assert!(problems[0].file.ends_with(super::REPLIES), "{problems:?}");
    }
}
