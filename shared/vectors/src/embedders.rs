use config::EmbedderSettings;
use embed::{EmbedError, Embedder};

/// The embedders of this process: the usual one, and one for a collection that is being filled, if that has another model.
#[derive(Clone, Debug, Default)]
pub struct Embedders(Vec<Embedder>);

impl Embedders {
    /// Opens those that are configured.
    ///
    /// # Errors
    /// [`EmbedError::Misconfigured`].
    pub async fn open(settings: &[&EmbedderSettings]) -> Result<Self, EmbedError> {
        let mut opened = Vec::with_capacity(settings.len());
        for settings in settings {
            opened.extend(Embedder::open(settings).await?);
        }
        Ok(Self(opened))
    }

    /// The one that makes vectors of this model.
    pub fn of(&self, model: &str) -> Option<&Embedder> {
        self.0.iter().find(|embedder| embedder.model() == model)
    }

    /// The usual one.
    pub fn primary(&self) -> Option<&Embedder> {
        self.0.first()
    }
}
