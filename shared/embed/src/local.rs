//! Embedding in this process.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::thread;

use futures::stream::{self, StreamExt, TryStreamExt};
use rayon::{ThreadPool, ThreadPoolBuilder};
use tokenizers::Tokenizer;
use tokio::sync::Semaphore;
use tracing::info;

use crate::bert::{self, Bert, Shape};
use crate::chunk::{Chunking, prefix};
use crate::vector::normalized;
use crate::weights::{Files, MODEL};
use crate::{EmbedError, Refusal};

/// The maximum number of tokens that the model reads, including `[CLS]` and `[SEP]`. It was trained on no longer texts.
const TOKENS: usize = 256;
/// The maximum number of bytes of a text that are tokenized.
const TEXT_BYTES: usize = 64 * 1024;
/// The maximum number of tokens of a batch, including padding. Larger batches are not faster and need more memory.
const BATCH_TOKENS: usize = 1_024;
/// The default number of threads.
const THREADS: usize = 2;

/// The model and its thread pool. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Local {
    model: Arc<Model>,
    threads: Arc<ThreadPool>,
    /// A permit per concurrent computation, so that no further blocking threads of Tokio wait for the pool.
    permits: Arc<Semaphore>,
}

struct Model {
    tokenizer: Tokenizer,
    bert: Bert,
    /// The tokens before and after every text: `[CLS]` and `[SEP]`.
    special: [u32; 2],
}

impl Local {
    pub(crate) async fn open(folder: &Path, threads: Option<usize>) -> Result<Self, EmbedError> {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let threads = threads.unwrap_or(THREADS.min(cores)).max(1);
        let pool =
            ThreadPoolBuilder::new().num_threads(threads).thread_name(|at| format!("embed-{at}")).build();
        let pool = pool.map_err(|error| misconfigured("cannot start threads", &error))?;
        let path = folder.to_owned();
        let model = tokio::task::spawn_blocking(move || Model::read(&path)).await;
        let model = model.map_err(|error| EmbedError::Unavailable(format!("the weights: {error}")))??;
        info!(model = MODEL, folder = %folder.display(), threads, "embedding texts in this process");
        Ok(Self {
            model: Arc::new(model),
            threads: Arc::new(pool),
            permits: Arc::new(Semaphore::new(threads)),
        })
    }

    pub(crate) fn dimension(&self) -> usize {
        self.model.bert.dimension()
    }

    pub(crate) fn chunks(&self, chunking: Chunking, text: &str) -> Vec<Range<usize>> {
        let text = chunking.readable(text);
        // This tokenizer accepts every text. If it failed, the text would be a single chunk.
        let encoding = self.model.tokenizer.encode(text, false);
        let offsets = encoding.as_ref().map_or(&[][..], |encoding| encoding.get_offsets());
        let ranges = offsets.iter().filter(|(start, end)| start < end).map(|&(start, end)| start..end);
        chunking.split(text, &ranges.collect::<Vec<_>>())
    }

    pub(crate) async fn embed(&self, texts: Vec<String>) -> Result<Vec<Vec<f32>>, EmbedError> {
        let count = texts.len();
        let tokens = self
            .compute(move |model| {
                let numbered = texts.iter().enumerate();
                numbered.map(|(at, text)| model.tokens(at, text)).collect::<Result<Vec<_>, _>>()
            })
            .await??;
        let tokens = Arc::new(tokens);
        let batches = stream::iter(batches(&tokens)).map(|batch| {
            let tokens = Arc::clone(&tokens);
            async move { self.vectors(&tokens, batch).await }
        });
        let made: Vec<Vec<(usize, Vec<f32>)>> =
            batches.buffer_unordered(self.threads.current_num_threads()).try_collect().await?;
        let mut vectors = vec![Vec::new(); count];
        for (at, vector) in made.into_iter().flatten() {
            vectors[at] = vector;
        }
        Ok(vectors)
    }

    /// The vectors of a batch. If the model fails on it, each text is tried alone, and one on which the model fails again
    /// is rejected if the model embeds an empty text meanwhile.
    async fn vectors(
        &self,
        tokens: &Arc<Vec<Vec<u32>>>,
        batch: Vec<usize>,
    ) -> Result<Vec<(usize, Vec<f32>)>, EmbedError> {
        let compute = async |tokens: &Arc<Vec<Vec<u32>>>, batch: Vec<usize>| {
            let tokens = Arc::clone(tokens);
            self.compute(move |model| model.vectors(&tokens, &batch)).await.flatten()
        };
        match compute(tokens, batch.clone()).await {
            Err(EmbedError::Unavailable(_)) => {}
            made => return made,
        }
        let mut vectors = Vec::with_capacity(batch.len());
        for at in batch {
            match compute(tokens, vec![at]).await {
                Err(EmbedError::Unavailable(reason)) => {
                    compute(&Arc::new(vec![self.model.special.to_vec()]), vec![0]).await?;
                    return Err(EmbedError::Refused(Refusal { texts: vec![at], reason }));
                }
                made => vectors.extend(made?),
            }
        }
        Ok(vectors)
    }

    /// Runs a computation on the thread pool of the model.
    async fn compute<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Model) -> T + Send + 'static,
    ) -> Result<T, EmbedError> {
        let failed = |problem: String| EmbedError::Unavailable(format!("the model: {problem}"));
        let permit =
            Arc::clone(&self.permits).acquire_owned().await.map_err(|error| failed(error.to_string()))?;
        let (model, threads) = (Arc::clone(&self.model), Arc::clone(&self.threads));
        let computed = tokio::task::spawn_blocking(move || {
            // The computation holds the permit, because its caller may be cancelled.
            let _permit = permit;
            threads.install(|| work(&model))
        });
        // The message of a panic may quote a text.
        computed.await.map_err(|_| failed("a computation panicked".to_owned()))
    }
}

impl Model {
    fn read(folder: &Path) -> Result<Self, EmbedError> {
        let Files { config, tokenizer, weights } = Files::read(folder)?;
        let shape: Shape =
            serde_json::from_slice(&config).map_err(|error| misconfigured("config.json", &error))?;
        let mut tokenizer = Tokenizer::from_bytes(&tokenizer)
            .map_err(|error| EmbedError::Misconfigured(format!("tokenizer.json: {error}")))?;
        // It asks for 128 tokens, never more and never fewer. The model takes twice as many, and fewer are quicker.
        tokenizer.with_padding(None);
        tokenizer.with_truncation(None).map_err(|error| EmbedError::Misconfigured(error.to_string()))?;
        let around = ["[CLS]", "[SEP]"].map(|name| tokenizer.token_to_id(name));
        let [Some(before), Some(after)] = around else {
            return Err(EmbedError::Misconfigured("tokenizer.json lacks [CLS] or [SEP]".to_owned()));
        };
        let weights = bert::weights(weights).map_err(|error| misconfigured("model.safetensors", &error))?;
        let bert =
            Bert::load(&shape, &weights).map_err(|error| misconfigured("model.safetensors", &error))?;
        Ok(Self { tokenizer, bert, special: [before, after] })
    }

    /// The tokens of the text at an index, for the model: at least two, at most [`TOKENS`].
    fn tokens(&self, at: usize, text: &str) -> Result<Vec<u32>, EmbedError> {
        // The error of the tokenizer may quote the text.
        let failed = |_| Refusal { texts: vec![at], reason: "the tokenizer fails on it".to_owned() };
        let encoding = self
            .tokenizer
            .encode_fast(prefix(text, TEXT_BYTES), false)
            .map_err(|error| EmbedError::Refused(failed(error)))?;
        let [before, after] = self.special;
        let ids = encoding.get_ids().iter().take(TOKENS - 2).copied();
        Ok([before].into_iter().chain(ids).chain([after]).collect())
    }

    /// The vectors of the texts at these indexes, with the indexes.
    fn vectors(&self, tokens: &[Vec<u32>], indexes: &[usize]) -> Result<Vec<(usize, Vec<f32>)>, EmbedError> {
        let texts: Vec<&[u32]> = indexes.iter().map(|&at| tokens[at].as_slice()).collect();
        let sums =
            self.bert.sums(&texts).map_err(|error| EmbedError::Unavailable(format!("the model: {error}")))?;
        indexes
            .iter()
            .zip(sums)
            .map(|(&at, sum)| match normalized(sum) {
                Some(vector) => Ok((at, vector)),
                None => Err(EmbedError::Refused(Refusal {
                    texts: vec![at],
                    reason: "the model computes no usable vector of it".to_owned(),
                })),
            })
            .collect()
    }
}

/// The indexes of the texts in batches of limited size, grouped by similar length to minimize padding.
fn batches(tokens: &[Vec<u32>]) -> Vec<Vec<usize>> {
    let mut indexes: Vec<usize> = (0..tokens.len()).collect();
    indexes.sort_by_key(|&at| std::cmp::Reverse(tokens[at].len()));
    // The first text of a batch is its longest.
    let fits = |batch: &[usize], at: usize| {
        let longest = tokens[batch[0]].len();
        (batch.len() + 1) * longest <= BATCH_TOKENS && tokens[at].len() * 2 >= longest
    };
    let mut batches: Vec<Vec<usize>> = Vec::new();
    for at in indexes {
        match batches.last_mut() {
            Some(batch) if fits(batch, at) => batch.push(at),
            Some(_) | None => batches.push(vec![at]),
        }
    }
    batches
}

fn misconfigured(what: &str, error: &dyn std::error::Error) -> EmbedError {
    EmbedError::Misconfigured(format!("{what}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_are_limited_and_contain_every_text_once() {
        let lengths = [2, 256, 3, 256, 255, 256, 256, 2, 17, 100];
        let tokens: Vec<Vec<u32>> = lengths.iter().map(|&length| vec![0; length]).collect();
        let made = batches(&tokens);
        assert_eq!(made, [vec![1, 3, 5, 6], vec![4], vec![9], vec![8], vec![2, 0, 7]]);
        assert!(batches(&[]).is_empty());
    }
}
