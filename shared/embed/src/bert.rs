//! The model: a BERT encoder, for inference only.
//!
//! It does not use candle-transformers, which would compile a hundred other models.

use candle_core::{DType, Device, IndexOp, Module, Result, Tensor};
use candle_nn::ops::softmax_last_dim;
use candle_nn::{LayerNorm, VarBuilder, layer_norm};
use serde::Deserialize;

/// The dimensions of a model, from its `config.json`.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Shape {
    pub(crate) hidden_size: usize,
    pub(crate) intermediate_size: usize,
    pub(crate) layer_norm_eps: f64,
    pub(crate) max_position_embeddings: usize,
    pub(crate) num_attention_heads: usize,
    pub(crate) num_hidden_layers: usize,
    pub(crate) type_vocab_size: usize,
    pub(crate) vocab_size: usize,
}

/// The model.
pub(crate) struct Bert {
    words: Tensor,
    /// The position embeddings plus the token type embedding of the first sentence, which every text is.
    positions: Tensor,
    norm: LayerNorm,
    layers: Vec<Layer>,
}

impl Bert {
    pub(crate) fn load(shape: &Shape, weights: &VarBuilder<'_>) -> Result<Self> {
        let hidden = shape.hidden_size;
        let of = weights.pp("embeddings");
        let table = |rows: usize, name: &str| of.get((rows, hidden), &format!("{name}_embeddings.weight"));
        let kinds = table(shape.type_vocab_size, "token_type")?;
        let positions = table(shape.max_position_embeddings, "position")?.broadcast_add(&kinds.i(0)?)?;
        let layer = |at: usize| Layer::load(shape, &weights.pp("encoder.layer").pp(at));
        Ok(Self {
            words: table(shape.vocab_size, "word")?,
            positions,
            norm: layer_norm(hidden, shape.layer_norm_eps, of.pp("LayerNorm"))?,
            layers: (0..shape.num_hidden_layers).map(layer).collect::<Result<_>>()?,
        })
    }

    /// The number of dimensions of its vectors.
    pub(crate) fn dimension(&self) -> usize {
        self.words.dims().get(1).copied().unwrap_or_default()
    }

    /// For each text of at least one token, the sum of its token vectors, which has the direction of their mean.
    pub(crate) fn sums(&self, texts: &[&[u32]]) -> Result<Vec<Vec<f32>>> {
        let longest = texts.iter().map(|text| text.len()).max().unwrap_or_default();
        let (count, device) = (texts.len(), &Device::Cpu);
        let mut ids = vec![0_u32; count * longest];
        let mut present = vec![0_f32; count * longest];
        for (row, text) in texts.iter().enumerate() {
            let start = row * longest;
            ids[start..start + text.len()].copy_from_slice(text);
            present[start..start + text.len()].fill(1.0);
        }
        let present = Tensor::from_vec(present, (count, 1, longest), device)?;
        // Texts of equal length have no padding and need no attention mask.
        let mask = match texts.iter().all(|text| text.len() == longest) {
            true => None,
            false => Some(((&present - 1.0)? * f64::from(f32::MAX))?.reshape((count, 1, 1, longest))?),
        };
        let words = self.words.index_select(&Tensor::from_vec(ids, count * longest, device)?, 0)?;
        let words = words.reshape((count, longest, self.dimension()))?;
        let mut state = self.norm.forward(&words.broadcast_add(&self.positions.narrow(0, 0, longest)?)?)?;
        for layer in &self.layers {
            state = layer.forward(&state, mask.as_ref())?;
        }
        present.matmul(&state)?.squeeze(1)?.to_vec2()
    }
}

/// A layer: self-attention, then the feed-forward network.
struct Layer {
    /// Queries, keys and values together, because one large product is faster than three.
    qkv: Dense,
    attention_output: Dense,
    attention_norm: LayerNorm,
    intermediate: Dense,
    output: Dense,
    output_norm: LayerNorm,
    heads: usize,
}

impl Layer {
    fn load(shape: &Shape, weights: &VarBuilder<'_>) -> Result<Self> {
        let (hidden, wide, eps) = (shape.hidden_size, shape.intermediate_size, shape.layer_norm_eps);
        let attention = weights.pp("attention");
        let qkv = ["query", "key", "value"].map(|part| attention.pp("self").pp(part));
        Ok(Self {
            qkv: Dense::load(hidden, hidden, &qkv)?,
            attention_output: Dense::load(hidden, hidden, &[attention.pp("output.dense")])?,
            attention_norm: layer_norm(hidden, eps, attention.pp("output.LayerNorm"))?,
            intermediate: Dense::load(hidden, wide, &[weights.pp("intermediate.dense")])?,
            output: Dense::load(wide, hidden, &[weights.pp("output.dense")])?,
            output_norm: layer_norm(hidden, eps, weights.pp("output.LayerNorm"))?,
            heads: shape.num_attention_heads,
        })
    }

    fn forward(&self, state: &Tensor, mask: Option<&Tensor>) -> Result<Tensor> {
        let attended = self.attention_output.forward(&self.attend(state, mask)?)?;
        let state = self.attention_norm.forward(&(attended + state)?)?;
        let wide = self.intermediate.forward(&state)?.gelu_erf()?;
        self.output_norm.forward(&(self.output.forward(&wide)? + &state)?)
    }

    fn attend(&self, state: &Tensor, mask: Option<&Tensor>) -> Result<Tensor> {
        let (count, length, hidden) = state.dims3()?;
        let size = hidden / self.heads;
        // From (count, length, 3 × heads × size) to 3 of (count, heads, length, size).
        let qkv = self.qkv.forward(state)?.reshape((count, length, 3, self.heads, size))?;
        let part = |at: usize| qkv.i((.., .., at))?.transpose(1, 2)?.contiguous();
        let (query, key, value) = ((part(0)? * (size as f64).powf(-0.5))?, part(1)?, part(2)?);
        let mut scores = query.matmul(&key.t()?)?;
        if let Some(mask) = mask {
            scores = scores.broadcast_add(mask)?;
        }
        let context = softmax_last_dim(&scores)?.matmul(&value)?;
        context.transpose(1, 2)?.contiguous()?.reshape((count, length, hidden))
    }
}

/// A linear layer: a product with a matrix, plus a bias.
struct Dense {
    /// One column per output. Model files store it transposed, and transposing it here saves that for every product.
    matrix: Tensor,
    bias: Tensor,
}

impl Dense {
    /// Loads layers and concatenates their outputs.
    fn load(from: usize, to: usize, weights: &[VarBuilder<'_>]) -> Result<Self> {
        let matrices =
            weights.iter().map(|part| part.get((to, from), "weight")).collect::<Result<Vec<_>>>()?;
        let biases = weights.iter().map(|part| part.get(to, "bias")).collect::<Result<Vec<_>>>()?;
        Ok(Self { matrix: Tensor::cat(&matrices, 0)?.t()?.contiguous()?, bias: Tensor::cat(&biases, 0)? })
    }

    /// Applies it to the last of three dimensions.
    fn forward(&self, state: &Tensor) -> Result<Tensor> {
        let (count, length, from) = state.dims3()?;
        let product = state.reshape((count * length, from))?.matmul(&self.matrix)?;
        product.broadcast_add(&self.bias)?.reshape((count, length, ()))
    }
}

/// The weights of a model, from a safetensors file.
pub(crate) fn weights(file: Vec<u8>) -> Result<VarBuilder<'static>> {
    VarBuilder::from_buffered_safetensors(file, DType::F32, &Device::Cpu)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use super::*;
    use std::collections::HashMap;

    /// Random weights.
    fn random(shape: &Shape) -> HashMap<String, Tensor> {
        let (hidden, wide) = (shape.hidden_size, shape.intermediate_size);
        let mut sizes = vec![
            ("embeddings.word_embeddings".to_owned(), shape.vocab_size, hidden),
            ("embeddings.position_embeddings".to_owned(), shape.max_position_embeddings, hidden),
            ("embeddings.token_type_embeddings".to_owned(), shape.type_vocab_size, hidden),
            ("embeddings.LayerNorm".to_owned(), 0, hidden),
        ];
        for layer in 0..shape.num_hidden_layers {
            let parts = [
                ("attention.self.query", hidden, hidden),
                ("attention.self.key", hidden, hidden),
                ("attention.self.value", hidden, hidden),
                ("attention.output.dense", hidden, hidden),
                ("attention.output.LayerNorm", 0, hidden),
                ("intermediate.dense", wide, hidden),
                ("output.dense", hidden, wide),
                ("output.LayerNorm", 0, hidden),
            ];
            let name = |part| format!("encoder.layer.{layer}.{part}");
            sizes.extend(parts.map(|(part, rows, columns)| (name(part), rows, columns)));
        }
        let mut chance = fastrand::Rng::with_seed(7);
        let mut weights = HashMap::new();
        for (name, rows, columns) in sizes {
            let mut tensor = |count: usize| {
                let numbers: Vec<f32> = (0..count).map(|_| chance.f32() - 0.5).collect();
                Tensor::from_vec(numbers, count, &Device::Cpu).unwrap()
            };
            let (weight, bias) = match rows {
                0 => (tensor(columns), tensor(columns)),
                _ => (tensor(rows * columns).reshape((rows, columns)).unwrap(), tensor(rows)),
            };
            weights.extend([(format!("{name}.weight"), weight), (format!("{name}.bias"), bias)]);
        }
        weights
    }

    #[test]
    fn padding_does_not_change_vectors() {
        let shape = Shape {
            hidden_size: 12,
            intermediate_size: 24,
            layer_norm_eps: 1e-12,
            max_position_embeddings: 16,
            num_attention_heads: 3,
            num_hidden_layers: 2,
            type_vocab_size: 2,
            vocab_size: 50,
        };
        let bert =
            Bert::load(&shape, &VarBuilder::from_tensors(random(&shape), DType::F32, &Device::Cpu)).unwrap();
        let texts: [&[u32]; 4] = [&[1], &[1, 7, 2], &[3, 4, 5, 6, 7, 8, 9], &[1, 7, 2]];
        let together = bert.sums(&texts).unwrap();
        for (text, sum) in texts.iter().zip(&together) {
            let alone = bert.sums(&[text]).unwrap().remove(0);
            let furthest = alone.iter().zip(sum).map(|(one, other)| (one - other).abs()).fold(0.0, f32::max);
            assert!(furthest < 1e-5, "{furthest}");
            assert!(alone.iter().any(|number| number.abs() > 1e-3));
        }
        assert_eq!(together[1], together[3]);
        assert_ne!(together[0], together[1]);
    }
}
