use config::EmbedderSettings;
use embed::{EmbedError, Embedder};

/// The embedders of this process: the primary one, and one for the collection of another model that a migration fills.
#[derive(Clone, Debug, Default)]
pub struct Embedders(Vec<Embedder>);

impl Embedders {
    /// Opens the configured embedders.
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

    /// The embedder of this model.
    pub fn of(&self, model: &str) -> Option<&Embedder> {
        self.0.iter().find(|embedder| embedder.model() == model)
    }

    /// The embedder of the section `embedder`.
    pub fn primary(&self) -> Option<&Embedder> {
        self.0.first()
    }
}
