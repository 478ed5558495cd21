"""The paper's equations, one test each, with expected values by hand or from a literal transcription."""

import math

import pytest
import torch
import torch.nn.functional as F

from pipeline.inference.decoding import sample
from pipeline.inference.filters import draw, filtered_probabilities
from pipeline.model import NarLMConfig, NarLMModel
from pipeline.model.narlm.modeling_narlm import (
    NarLMAttention,
    NarLMFeedForward,
    NarLMLayerNorm,
    NarLMRMSNorm,
    NarLMRotaryEmbedding,
    NarLMSinusoidalEmbedding,
    eager_attention_forward,
    rotate,
)
from tests import tiny_models


def paper_rotation(u: float, K: int) -> torch.Tensor:
    """R_u as Appendix A prints it: 2x2 blocks on adjacent coordinates, theta_j = 10000^{-2(j-1)/K}; (K, K) float64."""
    blocks = []
    for j in range(1, K // 2 + 1):
        a = u * 10000 ** (-2 * (j - 1) / K)
        blocks.append(torch.tensor([[math.cos(a), -math.sin(a)], [math.sin(a), math.cos(a)]], dtype=torch.float64))
    return torch.block_diag(*blocks)


def our_rotation(u: int, K: int) -> torch.Tensor:
    """R_u as the model applies it: the images of the K unit vectors, as columns; (K, K) float64."""
    config = NarLMConfig(hidden_size=K, num_attention_heads=1, max_position_embeddings=64)
    embedding = NarLMRotaryEmbedding(config)
    embedding.inv_freq = 1.0 / 10000.0 ** (torch.arange(0, K, 2, dtype=torch.float64) / K)
    angles = u * embedding.inv_freq
    cos, sin = torch.cat((angles.cos(), angles.cos())), torch.cat((-angles.sin(), angles.sin()))
    return rotate(torch.eye(K, dtype=torch.float64), cos, sin).T


def pairing(K: int) -> torch.Tensor:
    """P with P x = (x_1, x_3, x_5, ..., x_2, x_4, ...): from the paper's order of coordinates to ours."""
    return torch.eye(K, dtype=torch.float64)[torch.cat((torch.arange(0, K, 2), torch.arange(1, K, 2)))]


def test_rope_depends_on_the_relative_offset_only():
    """Appendix A: R_t^T R_s = R_{s-t}, for the paper's matrices and for ours."""
    for t, s in ((0, 0), (3, 1), (1, 3), (17, 40)):
        for rotation in (paper_rotation, our_rotation):
            torch.testing.assert_close(rotation(t, 8).T @ rotation(s, 8), rotation(s - t, 8))


def test_rope_pairs_coordinates_otherwise_than_the_paper_by_one_fixed_permutation():
    """R_u(ours) = P R_u(paper) P^T for every u, with one P: scores agree once W_Q and W_K are permuted."""
    P = pairing(8)
    for u in (0, 1, 2, 31):
        torch.testing.assert_close(our_rotation(u, 8), P @ paper_rotation(u, 8) @ P.T)
    q, k = torch.randn(2, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    score = (paper_rotation(5, 8) @ q) @ (paper_rotation(2, 8) @ k)
    torch.testing.assert_close((our_rotation(5, 8) @ P @ q) @ (our_rotation(2, 8) @ P @ k), score)
    assert abs(our_rotation(5, 8) @ q @ (our_rotation(2, 8) @ k) - score) > 1e-3  # the permutation is needed


def test_rotary_embedding_is_the_rotation():
    """The module's float32 cosines and sines turn the unit vectors as the float64 matrix does, at every position."""
    config = NarLMConfig(hidden_size=8, num_attention_heads=1, max_position_embeddings=64)
    cos, sin = NarLMRotaryEmbedding(config)(torch.zeros(1), torch.arange(6)[None])
    for u in range(6):
        matrix = rotate(torch.eye(8), cos[0, u], sin[0, u]).T
        torch.testing.assert_close(matrix.double(), our_rotation(u, 8), atol=1e-6, rtol=0)


def literal_multi_head(attention: NarLMAttention, H: torch.Tensor, delta: int | None) -> torch.Tensor:
    """(14)-(16) and MultiHead, token by token and head by head, columns as in the paper; H (D, T) -> (D, T)."""
    K, D, T = attention.head_dim, *H.shape
    weight = {n: getattr(attention, f"{n}_proj").weight.double() for n in "qkvo"}
    bias = {n: getattr(attention, f"{n}_proj").bias for n in "qkvo"}
    bias = {n: torch.zeros(len(weight[n])).double() if b is None else b.double() for n, b in bias.items()}
    out = torch.zeros(D, T, dtype=torch.float64)
    P = pairing(K)
    for t in range(T):
        heads = []
        for k in range(attention.config.num_attention_heads):
            g = k // attention.num_key_value_groups
            W_Q, W_K, W_V = (weight[n][i * K : (i + 1) * K] for n, i in (("q", k), ("k", g), ("v", g)))
            b_Q, b_K, b_V = (bias[n][i * K : (i + 1) * K] for n, i in (("q", k), ("k", g), ("v", g)))
            context = range(0 if delta is None else max(0, t - delta + 1), t + 1)  # C_t
            q = W_Q @ H[:, t] + b_Q
            scores = torch.stack(  # (14), with the paper's R on the paper's order of coordinates
                [
                    (paper_rotation(t, K) @ P.T @ q) @ (paper_rotation(s, K) @ P.T @ (W_K @ H[:, s] + b_K))
                    for s in context
                ]
            ) / math.sqrt(K)
            weights = torch.exp(scores) / torch.exp(scores).sum()  # (15)
            heads.append(sum(w * (W_V @ H[:, s] + b_V) for w, s in zip(weights, context)))  # (16)
        out[:, t] = weight["o"] @ torch.cat(heads) + bias["o"]  # W_O [heads], not [heads] W_O
    return out


@pytest.mark.parametrize("delta", [None, 3])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("kind", ["paper", "llama"])
def test_attention_is_bilinear_softmax_linear(narlm, kind, attention, delta):
    """One layer's MultiHead in float64 equals the transcription; grouped queries, window and biases included."""
    model = narlm(kind, attention, num_hidden_layers=1, sliding_window=delta, attention_bias=True).double().model
    model.rotary_emb.inv_freq = 1.0 / 10000.0 ** (torch.arange(0, 8, 2, dtype=torch.float64) / 8)
    captured = {}
    layer = model.layers[0].self_attn
    layer.register_forward_hook(
        lambda module, args, output: captured.update(inputs=args[0][0], outputs=output[0][0]), always_call=True
    )
    torch.manual_seed(3)
    model(inputs_embeds=torch.randn(1, 7, 32, dtype=torch.float64))
    expected = literal_multi_head(layer, captured["inputs"].T, delta)
    # angles pass through float32 inside the rotary module, which costs six digits of the phase
    torch.testing.assert_close(captured["outputs"].T, expected, atol=2e-6, rtol=0)


def test_layer_is_pre_norm_with_a_final_norm(narlm, tokens):
    """(13) line by line from the model's own parts: H + MultiHead(LN(H)), then + FFN(LN'(.)); after L layers a norm.

    The paper's listing 7 calls this post-LayerNorm; a post-LN layer would give another result.
    """
    model = narlm("sinusoidal", num_hidden_layers=1, sliding_window=None).model
    layer = model.layers[0]
    H = model.embed_tokens(tokens) + model.embed_positions(torch.arange(12)[None])
    mask = torch.full((12, 12), -torch.inf).triu(1)[None, None]
    tilde = H + layer.self_attn(layer.input_layernorm(H), attention_mask=mask)[0]
    out = tilde + layer.mlp(layer.post_attention_layernorm(tilde))
    torch.testing.assert_close(model(tokens).last_hidden_state, model.norm(out))
    post = layer.input_layernorm(H + layer.self_attn(H, attention_mask=mask)[0])
    post = layer.post_attention_layernorm(post + layer.mlp(post))
    assert (model(tokens).last_hidden_state - model.norm(post)).abs().max() > 0.1


def receptive_field(model: NarLMModel, T: int) -> torch.Tensor:
    """(T, T) booleans: does d s_t / d e_tau differ from zero?"""
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randn(1, T, model.config.hidden_size, generator=generator, requires_grad=True)
    direction = torch.randn(model.config.hidden_size, generator=generator)  # a generic one misses no coordinate
    states = model(inputs_embeds=embeddings).last_hidden_state[0] @ direction
    rows = [torch.autograd.grad(states[t], embeddings, retain_graph=True)[0][0] for t in range(T)]
    return torch.stack(rows).abs().sum(-1) > 0


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize(("L", "delta"), [(1, 3), (2, 3), (3, 2), (2, None), (2, 1)])
def test_jacobian_support_is_the_receptive_field(narlm, attention, L, delta):
    """d s_t / d e_tau is nonzero exactly for t - L(Delta-1) <= tau <= t, and for all tau <= t without a window.

    After (5) the paper prints Delta for any depth: that holds for L = 1, or when the input itself is cut.
    """
    T = 9
    model = narlm("llama", attention, num_hidden_layers=L, sliding_window=delta).model
    reach = T if delta is None else L * (delta - 1) + 1
    lag = torch.arange(T)[:, None] - torch.arange(T)[None, :]
    assert torch.equal(receptive_field(model, T), (lag >= 0) & (lag < reach))


def test_cutting_the_input_to_delta_tokens_gives_the_paper_s_band(narlm, tokens):
    """(6): with x_{t-Delta+1:t} alone as input, no earlier token matters, at any depth: two prefixes, one result.

    A window of Delta in each of two layers is not that: there the same two prefixes differ.
    """
    model = narlm("llama", num_hidden_layers=2)
    other = tokens.clone()
    other[:, :4] = (other[:, :4] + 1) % 50 + 3
    delta = 4
    assert torch.equal(model(tokens[:, -delta:]).logits[:, -1], model(other[:, -delta:]).logits[:, -1])
    windowed = narlm("llama", num_hidden_layers=2, sliding_window=delta)
    assert (windowed(tokens[:, :8]).logits[:, 7] - windowed(other[:, :8]).logits[:, 7]).abs().max() > 1e-4
    first = tokens.clone()
    first[:, 0] = other[:, 0]  # 2 (4 - 1) + 1 = 7 tokens reach the eighth: the first one does not
    torch.testing.assert_close(windowed(first[:, :8]).logits[:, 7], windowed(tokens[:, :8]).logits[:, 7])


def test_prompt_leaves_the_context_when_t_exceeds_delta(narlm, tokens):
    """Part 3, remark (ii): the whole prompt x_1..x_{t0} is in the context of x_t only while t <= Delta.

    One layer, Delta = 4, prompt of 3 tokens, t counted from 1: changing x_1 moves the logits of t = 4 and not of
    t = 5, although 5 <= t0 + Delta - 1 = 6, the paper's bound, which is for *some* of the prompt.
    """
    model = narlm("llama", num_hidden_layers=1, sliding_window=4)
    first, last = tokens.clone(), tokens.clone()
    first[:, 0] = (first[:, 0] + 1) % 50 + 3
    last[:, 2] = (last[:, 2] + 1) % 50 + 3
    base = model(tokens).logits

    def moved(changed, t):
        return bool((model(changed).logits - base)[:, t - 1].abs().max() > 1e-6)

    assert [moved(first, t) for t in (4, 5, 6, 7)] == [True, False, False, False]
    assert [moved(last, t) for t in (4, 5, 6, 7)] == [True, True, True, False]


def test_matrix_form_masks_the_strictly_lower_triangle():
    """Appendix A, remark 3: V softmax(K^T Q), column by column, is causal when entries below the diagonal are -inf.

    Rows of K^T Q are keys s and columns queries t, so s > t lies below the diagonal. Masking the upper triangle, as
    the paper says, makes token 1 depend on every later token.
    """
    Q, K, V = torch.randn(3, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))  # (d_h, T)

    def attend(banned):
        scores = (K.T @ Q / 2).masked_fill(banned, -torch.inf)
        return V @ torch.softmax(scores, dim=0)

    below = torch.ones(5, 5, dtype=torch.bool).tril(-1)
    module = torch.nn.Module()
    module.training = False
    rows = (x.T[None, None] for x in (Q, K, V))
    ours, _ = eager_attention_forward(module, *rows, torch.zeros(1, 1, 5, 5).masked_fill(below.T, -1e30), scaling=0.5)
    torch.testing.assert_close(ours[0, :, 0].T, attend(below))
    torch.testing.assert_close(attend(below)[:, 0], V[:, 0])  # the first token sees itself alone
    assert (attend(below.T)[:, 0] - V[:, 0]).abs().max() > 0.1


def test_output_layer_and_next_token_law(narlm, tokens):
    """(7): z = W_out s + b_out, with b_out a real parameter; (8): softmax(z) lies in the simplex."""
    model = narlm("paper")
    s = model.model(tokens).last_hidden_state
    z = torch.stack([model.lm_head.weight @ s[0, t] + model.lm_head.bias for t in range(12)])
    torch.testing.assert_close(model(tokens).logits[0], z)
    law = torch.softmax(model(tokens).logits, dim=-1)
    assert law.shape == (2, 12, 61)
    torch.testing.assert_close(law.sum(-1), torch.ones(2, 12))
    assert (law > 0).all()
    assert narlm("learned", output_bias=False).lm_head.bias is None


def test_loss_is_the_mean_negative_log_likelihood(narlm, tokens):
    """(9): -sum_t log pi_t(x_{t+1}) over t = 1..T-1, here divided by the number of terms; -100 leaves a term out.

    It is also the mean of KL(one-hot, pi), since a one-hot has no entropy.
    """
    model = narlm("paper")
    log_law = torch.log_softmax(model(tokens).logits.double(), dim=-1)
    terms = -torch.stack([log_law[b, t, tokens[b, t + 1]] for b in range(2) for t in range(11)]).view(2, 11)
    torch.testing.assert_close(model(tokens, labels=tokens).loss.double(), terms.mean(), atol=1e-5, rtol=0)
    one_hot = F.one_hot(tokens[:, 1:], 61).double()
    kl = torch.special.xlogy(one_hot, one_hot).sum(-1) - (one_hot * log_law[:, :-1]).sum(-1)
    torch.testing.assert_close(kl, terms)
    labels = tokens.clone()
    labels[:, :5] = -100
    torch.testing.assert_close(model(tokens, labels=labels).loss.double(), terms[:, 4:].mean(), atol=1e-5, rtol=0)


def test_autoregression_of_order_t(narlm, tokens):
    """(1): the logits of a prefix do not depend on what follows it."""
    model = narlm("paper")
    whole = model(tokens).logits
    for t in (1, 5, 11):
        torch.testing.assert_close(model(tokens[:, :t]).logits, whole[:, :t], atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("tau", "expected"),
    [
        (1.0, [0.659, 0.242, 0.099]),  # the paper's figures
        (0.5, [0.864, 0.117, 0.019]),  # the paper: "approximately 0.90"
        (2.0, [0.502, 0.304, 0.194]),  # the paper: 0.46, 0.28, 0.26
    ],
)
def test_worked_example_of_one_step_of_generation(tau, expected):
    """Part 3, section 4: logits (2.0, 1.0, 0.1).

    tau=1: e^2=7.389, e^1=2.718, e^0.1=1.105, sum 11.212. tau=0.5: e^4=54.598, e^2=7.389, e^0.2=1.221, sum 63.209.
    tau=2: e^1=2.718, e^0.5=1.649, e^0.05=1.051, sum 5.418. Numbers just below and above the first two sums of
    probabilities draw the tokens on either side.
    """
    law = filtered_probabilities(torch.tensor([[2.0, 1.0, 0.1]]), temperature=tau, top_p=1.0, top_k=0)
    assert [round(p, 3) for p in law[0].tolist()] == expected
    first, second = expected[0], expected[0] + expected[1]
    numbers = torch.tensor([first - 0.002, first + 0.002, second - 0.002, second + 0.002], dtype=torch.float64)
    assert draw(law.expand(4, -1).contiguous(), numbers).tolist() == [0, 1, 1, 2]


def test_temperature_limits():
    """Remark (iv): tau -> 0 is the argmax, tau -> infinity the uniform law."""

    def law(tau):
        z = torch.tensor([[2.0, 1.0, 0.1]])
        return filtered_probabilities(z, temperature=tau, top_p=1.0, top_k=0)[0]

    torch.testing.assert_close(law(1e-3), torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64))
    torch.testing.assert_close(law(1e6), torch.full((3,), 1 / 3, dtype=torch.float64), atol=1e-6, rtol=0)
    model, tokenizer, options = tiny_models.tiny_model(), tiny_models.tiny_tokenizer(), {"max_new_tokens": 12}
    cold, greedy = (sample(model, tokenizer, ["a b", "c"], temperature=tau, **options) for tau in (1e-4, 0))
    assert cold == greedy  # tau = 0 is defined as that limit


def toy_attention(scaling: float) -> tuple[list[float], list[float]]:
    """Appendix A's toy head at t = 3: (weights, output), computed by the model's own attention."""
    h = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], dtype=torch.float64)
    q = h @ torch.tensor([[2.0, 0.0], [0.0, 1.0]], dtype=torch.float64).T
    module = torch.nn.Module()
    module.training = False
    out, weights = eager_attention_forward(module, q[None, None, 2:], h[None, None], h[None, None], None, scaling)
    return weights.flatten().tolist(), out.flatten().tolist()


def test_worked_example_of_attention_as_printed():
    """Scores 2, 1, 3, no 1/sqrt(d_h): weights e^2, e^1, e^3 over 30.193 = 0.245, 0.090, 0.665; output (0.910, 0.755).

    Exactly 0.9100 and 0.7553.
    """
    weights, out = toy_attention(scaling=1.0)
    assert [round(w, 3) for w in weights] == [0.245, 0.090, 0.665]
    assert [round(x, 3) for x in out] == [0.910, 0.755]


def test_worked_example_of_attention_with_the_scale_of_14():
    """The same with 1/sqrt(2): scores 1.414, 0.707, 2.121, weights 4.113, 2.028, 8.342 over 14.483."""
    weights, out = toy_attention(scaling=2**-0.5)
    assert [round(w, 3) for w in weights] == [0.284, 0.140, 0.576]
    assert [round(x, 3) for x in out] == [0.860, 0.716]


def test_bidirectional_attention_is_normalised_over_all_tokens():
    """Appendix A, remark 4: without a mask the weights of every token are a probability vector over all T tokens, its
    later ones too; with the causal mask those have weight 0.
    """
    q, k, v = torch.randn(3, 1, 2, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    module = torch.nn.Module()
    module.training = False
    out, weights = eager_attention_forward(module, q, k, v, None, 0.5)
    scores = torch.exp(0.5 * torch.einsum("bhtd,bhsd->bhts", q, k))
    torch.testing.assert_close(weights, scores / scores.sum(-1, keepdim=True))
    assert (weights > 0).all()
    torch.testing.assert_close(out.transpose(1, 2), weights @ v)
    causal = torch.zeros(1, 1, 5, 5, dtype=torch.float64).masked_fill(torch.ones(5, 5).triu(1).bool(), -torch.inf)
    assert (eager_attention_forward(module, q, k, v, causal, 0.5)[1].triu(1) == 0).all()


def test_attention_without_positions_and_mask_is_permutation_equivariant(narlm):
    """Appendix A, RoPE: MultiHead(X P) = MultiHead(X) P for every order of the tokens, when nothing says where they
    are and nobody is masked; with rotations, or with the causal mask, it is not.
    """
    layer = narlm("paper").double().model.layers[0].self_attn
    x = torch.randn(1, 7, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    order = torch.tensor([3, 0, 6, 1, 5, 2, 4])
    causal = torch.zeros(1, 1, 7, 7, dtype=torch.float64).masked_fill(torch.ones(7, 7).triu(1).bool(), -torch.inf)
    angles = torch.arange(7)[:, None] * 10000.0 ** (-torch.arange(0, 8, 2, dtype=torch.float64) / 8)
    angles = torch.cat([angles, angles], 1)[None]
    sign = torch.tensor([-1.0] * 4 + [1.0] * 4, dtype=torch.float64)
    rotations = (angles.cos(), angles.sin() * sign)

    def gap(mask, positions):
        with torch.no_grad():
            plain, moved = (layer(y, position_embeddings=positions, attention_mask=mask)[0] for y in (x, x[:, order]))
        return (plain[:, order] - moved).abs().max().item()

    everybody = torch.zeros_like(causal)
    assert gap(everybody, None) < 1e-5
    assert gap(everybody, rotations) > 1e-2
    assert gap(causal, None) > 1e-2


def test_sinusoidal_positions():
    """Remark (i), D = 4: p_t = (sin t, cos t, sin(t/100), cos(t/100)), for t = 0, 1 and 3."""
    embedding = NarLMSinusoidalEmbedding(NarLMConfig(hidden_size=4, num_attention_heads=1))
    expected = [[math.sin(t), math.cos(t), math.sin(t / 100), math.cos(t / 100)] for t in (0, 1, 3)]
    torch.testing.assert_close(embedding(torch.tensor([[0, 1, 3]]))[0], torch.tensor(expected))


def test_added_positions_are_part_of_h0(narlm, tokens):
    """Remarks (i) and (iv): H_0 = e_t + p_t, and p_t = P[t] of a learned (Delta, D) table, t from the first token."""
    for kind in ("learned", "sinusoidal"):
        model = narlm(kind).model
        h0 = model(tokens, output_hidden_states=True).hidden_states[0]
        p = model.embed_positions(torch.arange(12)[None])
        torch.testing.assert_close(h0, model.embed_tokens(tokens) + p)
    assert narlm("learned").model.embed_positions.weight.shape == (64, 32)


def test_word_order_matters_without_positions_too():
    """Remark (ii): the causal mask alone tells "dog ate man" from "man ate dog".

    Without positions the last token of one layer sees a set; in two layers it sees what the prefixes became.
    """
    torch.manual_seed(0)
    config = NarLMConfig(
        vocab_size=9, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, initializer_range=0.5
    )
    model = NarLMModel(config).eval()

    def last(*word_order):
        x = torch.tensor([word_order])
        nowhere = torch.zeros_like(x)  # R_0 is the identity; the mask says that this is one document
        return model(x, attention_mask=torch.ones_like(x), position_ids=nowhere).last_hidden_state[:, -1]

    assert (last(3, 4, 5) - last(4, 3, 5)).abs().max() > 1e-3
    model.layers = model.layers[:1]
    torch.testing.assert_close(last(3, 4, 5), last(4, 3, 5))


def test_layer_norm_by_hand():
    """z = (1, 3): mu 2, sigma^2 1, so (-1, 1)/sqrt(1 + 1e-5), times gamma (2, 3), plus beta (0.5, -0.5)."""
    norm = NarLMLayerNorm(2, eps=1e-5)
    norm.weight.data, norm.bias.data = torch.tensor([2.0, 3.0]), torch.tensor([0.5, -0.5])
    scale = 1 / math.sqrt(1 + 1e-5)
    torch.testing.assert_close(norm(torch.tensor([1.0, 3.0])), torch.tensor([-2 * scale + 0.5, 3 * scale - 0.5]))


def test_rms_norm_by_hand():
    """z = (3, 4): mean square 12.5, so z / sqrt(12.5 + 1e-5), times (2, 1)."""
    norm = NarLMRMSNorm(2, eps=1e-5)
    norm.weight.data = torch.tensor([2.0, 1.0])
    scale = 1 / math.sqrt(12.5 + 1e-5)
    torch.testing.assert_close(norm(torch.tensor([3.0, 4.0])), torch.tensor([6 * scale, 4 * scale]))


def test_feed_forward_by_hand():
    """(17), one unit: GELU W_2 s(W x + b_1) + b_2 and SwiGLU W_2 (silu(G x) * (W x)).

    x = 1, W = 2, b_1 = 1, W_2 = 3, b_2 = 0.5: gelu(3) = 3 Phi(3) = 2.99595, so 9.48785.
    x = 1, G = 1, W = 2, W_2 = 3: silu(1) = 0.731059, so 4.38635.
    """
    shape = {"hidden_size": 1, "intermediate_size": 1, "num_attention_heads": 1, "position_embedding_type": "learned"}
    gelu = NarLMFeedForward(NarLMConfig(**shape))
    swiglu = NarLMFeedForward(NarLMConfig(**shape, ffn_type="swiglu", mlp_bias=False))
    for layer, value in ((gelu.up_proj, 2.0), (gelu.down_proj, 3.0), (swiglu.gate_proj, 1.0), (swiglu.up_proj, 2.0)):
        layer.weight.data.fill_(value)
    swiglu.down_proj.weight.data.fill_(3.0)
    gelu.up_proj.bias.data.fill_(1.0)
    gelu.down_proj.bias.data.fill_(0.5)
    assert gelu(torch.ones(1)).item() == pytest.approx(9.48785, abs=1e-5)
    assert swiglu(torch.ones(1)).item() == pytest.approx(4.38635, abs=1e-5)
