//! Options in environment variables.

use figment::providers::Env;
use figment::value::{Dict, Map, Value};
use figment::{Error, Metadata, Profile, Provider};

/// The prefix of environment variables with options. `__` separates the section from the option, as in
/// `MEMFLEET_WORKER__BATCH_SIZE`.
pub const ENVIRONMENT_PREFIX: &str = "MEMFLEET_";

/// The options in the environment, each as the text that it is.
///
/// [`Env`] would guess the type of a value from its text, so that a password of digits would become a number, and
/// remove spaces and quotation marks.
pub(crate) struct Environment(Env);

impl Environment {
    pub(crate) fn new() -> Self {
        Self(Env::prefixed(ENVIRONMENT_PREFIX).filter(|key| key.as_str().contains("__")).split("__"))
    }
}

impl Provider for Environment {
    fn metadata(&self) -> Metadata {
        self.0.metadata()
    }

    fn data(&self) -> Result<Map<Profile, Dict>, Error> {
        let mut sections: Map<String, Dict> = Map::new();
        for (key, value) in self.0.iter() {
            if let Some((section, option)) = key.as_str().split_once('.') {
                // A secret that comes from a file often ends with a line break, which is no part of it.
                let value = value.trim_end_matches(['\r', '\n']);
                sections.entry(section.to_owned()).or_default().insert(option.to_owned(), value.into());
            }
        }
        let sections = sections.into_iter().map(|(name, options)| (name, Value::from(options))).collect();
        Ok(Map::from([(Profile::Default, sections)]))
    }
}
