"""Holds exported models against the programs they are for: see scripts/verify_exports.

    python scripts/verify_exports.py ALTIPLANO FOLDER [LLAMA_SERVER]

Prints one line for each comparison and fails at the first that does not hold.
"""

import importlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type
from safetensors.numpy import load_file

ROOT = Path(__file__).resolve().parents[1]
PROMPTS = ["The people of the United States", "  Two spaces,\ttab; naïve 日本 12345\nEnd", "I"]
MODELS = {
    "heads_64": dict(dim=256, n_layers=9, n_heads=4, n_kv_heads=2, hidden_dim=512),
    "heads_128": dict(dim=512, n_layers=2, n_heads=4, n_kv_heads=1, hidden_dim=768),
    "odd_rows": dict(dim=96, n_layers=2, n_heads=6, n_kv_heads=3, hidden_dim=176),
}
TYPES = ["f32", "f16", "bf16", "q8_0", "q6_k", "q4_k_m", "q4_0", "q4_0_pure"]
TOKENS = 24


def optional(name):
    """The module, or None with a line that says so."""
    try:
        return importlib.import_module(name)
    except Exception as error:
        print(f"skipped: {name} cannot be imported ({str(error).splitlines()[0]})")
        return None


torch = optional("torch")
mistralrs = optional("mistralrs")


class Project:
    def __init__(self, altiplano, folder):
        self.altiplano, self.folder = Path(altiplano).resolve(), Path(folder)

    def run(self, *arguments):
        command = [str(self.altiplano), *map(str, arguments)]
        return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout

    def make_text(self):
        speeches = ROOT / "tests/fixtures/plain/speeches/19[5-7]*.txt"
        (self.folder / "data.yaml").write_text(
            "output: .\nsources:\n"
            f"- name: speeches\n  text: {{ paths: ['{speeches}'], format: files }}\n"
            "holdout: { bytes_per_source: 8000 }\n"
            "tokenizer: { vocab_size: 512, input_bytes: 300000 }\n"
        )
        for command in (["data", "run"], ["tokenizer", "train"], ["tokenize"]):
            self.run(*command, self.folder / "data.yaml")

    def train(self, name, shape):
        """A checkpoint after a few steps. The large starting weights make greedy text change from
        token to token; the steps give the norms values of their own."""
        model = ", ".join(f"{key}: {value}" for key, value in shape.items())
        config = self.folder / f"{name}.yaml"
        config.write_text(
            f"name: {name}\noutput: runs\nprecision: f32\n"
            f"model: {{ {model}, vocab_size: 512, max_seq_len: 128, init_std: 0.2 }}\n"
            "tokenizer: tokenizer.model\n"
            "data: { sources: [{ path: tokens/speeches, weight: 1.0 }] }\n"
            "batch: { micro_batch: 2, grad_accum_steps: 1, seq_len: 128 }\n"
            "steps: 3\noptimizer: { lr: 1.0e-2, warmup_steps: 1 }\n"
            "validate: { every: 0 }\n"
        )
        self.run("train", config)
        return self.folder / "runs" / name / "checkpoints/step_00000003"

    def export(self, checkpoint, output, *options):
        output = self.folder / output
        self.run("export", "--checkpoint", checkpoint, "--output", output, *options)
        return output

    def greedy(self, checkpoint, prompt):
        return json.loads(
            self.run("generate", "--checkpoint", checkpoint, "--prompt", prompt, "--temperature",
                     0, "--max-tokens", TOKENS, "--json").splitlines()[-1]
        )

    def prompt_ids(self, checkpoint, prompt):
        model = checkpoint / "tokenizer.model"
        found = self.run("tokenizer", "encode", "--model", model, "--json", prompt)
        return [1, *json.loads(found)["token_ids"]]


def says(line):
    print(line, flush=True)


def pairs(weight, heads):
    """Rows of queries or keys from halves, as in a checkpoint, to pairs, as in GGUF and Meta's files."""
    rows, columns = weight.shape
    halves = weight.reshape(heads, 2, rows // heads // 2, columns)
    return halves.swapaxes(1, 2).reshape(rows, columns)


def expected_tensors(checkpoint, shape):
    """The weights under the names of GGUF and Meta, q and k in pairs."""
    names = {
        "self_attn.q_proj": ("attn_q", "attention.wq"),
        "self_attn.k_proj": ("attn_k", "attention.wk"),
        "self_attn.v_proj": ("attn_v", "attention.wv"),
        "self_attn.o_proj": ("attn_output", "attention.wo"),
        "mlp.gate_proj": ("ffn_gate", "feed_forward.w1"),
        "mlp.up_proj": ("ffn_up", "feed_forward.w3"),
        "mlp.down_proj": ("ffn_down", "feed_forward.w2"),
        "input_layernorm": ("attn_norm", "attention_norm"),
        "post_attention_layernorm": ("ffn_norm", "ffn_norm"),
    }
    alone = {
        "model.embed_tokens": ("token_embd", "tok_embeddings"),
        "model.norm": ("output_norm", "norm"),
        "lm_head": ("output", "output"),
    }
    in_gguf, in_meta = {}, {}
    for name, weight in load_file(checkpoint / "model.safetensors").items():
        name = name.removesuffix(".weight")
        if name in alone:
            ours, meta = alone[name]
        else:
            layer, name = name.removeprefix("model.layers.").split(".", 1)
            ours, meta = (f"blk.{layer}.{names[name][0]}", f"layers.{layer}.{names[name][1]}")
        if name.endswith("q_proj"):
            weight = pairs(weight, shape["n_heads"])
        elif name.endswith("k_proj"):
            weight = pairs(weight, shape["n_kv_heads"])
        in_gguf[f"{ours}.weight"] = weight
        in_meta[f"{meta}.weight"] = weight
    return in_gguf, in_meta


def check_gguf(project, name, shape, checkpoint):
    expected, _ = expected_tensors(checkpoint, shape)
    for kind in TYPES:
        path = project.export(
            checkpoint, f"{name}-{kind}.gguf", "--format", "gguf", "--type", kind
        )
        reader = gguf.GGUFReader(path)
        keys = {key: field.contents() for key, field in reader.fields.items()}
        assert keys["general.architecture"] == "llama"
        assert keys["llama.attention.head_count_kv"] == shape["n_kv_heads"]
        assert keys["llama.rope.dimension_count"] == shape["dim"] // shape["n_heads"]
        assert len(keys["tokenizer.ggml.tokens"]) == 512
        found = {tensor.name: tensor for tensor in reader.tensors}
        assert set(found) == set(expected), set(found) ^ set(expected)
        exact = 0
        for tensor_name, tensor in found.items():
            weight = expected[tensor_name]
            assert list(reversed(tensor.shape.tolist())) == list(weight.shape), tensor_name
            values = gguf.dequantize(tensor.data, tensor.tensor_type).reshape(weight.shape)
            if tensor.tensor_type in (Type.F32, Type.F16, Type.BF16, Type.Q8_0, Type.Q4_0, Type.Q5_0):
                same = gguf.quantize(weight, tensor.tensor_type)
                assert same.tobytes() == tensor.data.tobytes(), (tensor_name, tensor.tensor_type)
                exact += 1
            error = np.linalg.norm(values - weight) / np.linalg.norm(weight)
            bound = {Type.Q4_K: 0.09, Type.Q6_K: 0.02, Type.Q4_0: 0.13, Type.Q5_0: 0.07}
            assert error < bound.get(tensor.tensor_type, 0.01), (tensor_name, error)
        kinds = sorted({tensor.tensor_type.name for tensor in found.values()})
        says(f"{name}: gguf reads {kind} ({', '.join(kinds)}), {exact} of {len(found)} tensors to the byte")


def check_hugging_face(project, name, checkpoint):
    from transformers import AutoTokenizer

    directory = project.export(
        checkpoint, f"{name}-hf", "--format", "hf", "--max-shard-size", "1MB"
    )
    if (directory / "tokenizer.json").exists():
        tokenizer = AutoTokenizer.from_pretrained(directory)
        for prompt in PROMPTS:
            ours, theirs = project.prompt_ids(directory, prompt), tokenizer(prompt)["input_ids"]
            assert ours == theirs, (prompt, ours, theirs)
        says(f"{name}: transformers' tokenizer gives our ids")
    else:
        says(f"skipped: {name}: there is no tokenizer.json")
    if torch is None:
        return directory
    from transformers import AutoModelForCausalLM

    for dtype, bound in (("f32", 1e-4), ("bf16", None)):
        exported = directory
        if dtype != "f32":
            exported = project.export(
                checkpoint, f"{name}-hf-{dtype}", "--format", "hf", "--dtype", dtype
            )
        model = AutoModelForCausalLM.from_pretrained(exported, dtype="auto").eval()
        for prompt in PROMPTS:
            ids = project.prompt_ids(checkpoint, prompt)
            with torch.no_grad():
                made = model.generate(
                    torch.tensor([ids]), max_new_tokens=TOKENS, do_sample=False, pad_token_id=0
                )
            if bound is not None:
                ours = project.greedy(exported, prompt)["token_ids"]
                theirs = made[0, len(ids):].tolist()
                assert ours == theirs[: len(ours)], (prompt, ours, theirs)
        says(f"{name}: transformers loads {dtype}" + (" and gives our greedy ids" if bound else ""))
    return directory


def check_meta(project, name, shape, checkpoint):
    _, expected = expected_tensors(checkpoint, shape)
    for shards in (1, 2) if shape["n_kv_heads"] % 2 == 0 else (1,):
        directory = project.export(
            checkpoint, f"{name}-meta-{shards}", "--format", "meta", "--shards", shards
        )
        back = project.folder / f"{name}-back-{shards}"
        project.run("import", "--from", "meta", directory, "--context", 128, "--output", back)
        ours, before = load_file(back / "model.safetensors"), load_file(checkpoint / "model.safetensors")
        assert all(np.array_equal(ours[key], before[key]) for key in before)
        if torch is None:
            continue
        parts = [
            torch.load(directory / f"consolidated.{n:02}.pth", weights_only=True)
            for n in range(shards)
        ]
        for key, weight in expected.items():
            found = [part[key].numpy() for part in parts]
            if found[0].shape != weight.shape:
                axis = 0 if found[0].shape[0] != weight.shape[0] else 1
                assert np.array_equal(np.concatenate(found, axis), weight), key
            else:
                assert all(np.array_equal(part, weight) for part in found), key
        says(f"{name}: torch.load reads {shards} files of Meta's layout")
        # What PyTorch itself writes is read as well.
        for n, part in enumerate(parts):
            torch.save({key: value.clone() for key, value in part.items()},
                       directory / f"consolidated.{n:02}.pth")
        project.run("import", "--from", "meta", directory, "--context", 128, "--output", back,
                    "--overwrite")
        ours = load_file(back / "model.safetensors")
        assert all(np.array_equal(ours[key], before[key]) for key in before)
        says(f"{name}: {shards} files of torch.save are read")


def check_transformers_gguf(project, name, checkpoint, directory):
    """transformers' reader of GGUF undoes the rotary layout by itself: its logits from the f32 file are
    those from the Hugging Face directory."""
    if torch is None or optional("accelerate") is None:
        return
    from transformers import AutoModelForCausalLM

    ids = torch.tensor([project.prompt_ids(checkpoint, PROMPTS[0])])
    file = f"{name}-f32.gguf"
    models = (
        AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval(),
        AutoModelForCausalLM.from_pretrained(
            project.folder, gguf_file=file, dtype=torch.float32
        ).eval(),
    )
    with torch.no_grad():
        ours, theirs = (model(ids).logits for model in models)
    difference = (ours - theirs).abs().max().item()
    assert difference < 1e-4, difference
    says(f"{name}: transformers reads f32 of GGUF: logits differ by {difference:.1e} at most")


def check_mistralrs(project, name, directory):
    """mistral.rs loads the quantized files and generates. It is given tokenizer.json, because the
    tokenizer it makes of GGUF's tokens is of another kind than SentencePiece's BPE. It multiplies
    quantized blocks by activations of 8 bits, so how much of the text is ours is printed only."""
    if mistralrs is None or not (directory / "tokenizer.json").exists():
        return
    os.environ["MISTRALRS_CPU_KV_F32"] = "1"
    for kind in ("f32", "q8_0", "q4_0", "q4_k_m"):
        path = project.folder / f"{name}-{kind}.gguf"
        which = mistralrs.Which.GGUF(
            tok_model_id=str(directory),
            quantized_model_id=str(path.parent),
            quantized_filename=path.name,
        )
        request = mistralrs.CompletionRequest(
            model="default", prompt=PROMPTS[0], max_tokens=TOKENS, temperature=0.0
        )
        answer = mistralrs.Runner(which=which).send_completion_request(request)
        theirs = answer.choices[0].text
        ours = project.greedy(directory, PROMPTS[0])["text"]
        same = len(os.path.commonprefix([ours, theirs]))
        says(f"{name}: mistral.rs loads {kind}: the first {same} of {len(ours)} characters are ours")


class LlamaServer:
    """llama.cpp's server with one file, on a free port of this machine. Keys, values and attention are in f32,
    as ours are."""

    def __init__(self, program, file):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.log = open(f"{file}.log", "w")
        self.process = subprocess.Popen(
            [program, "-m", file, "--host", "127.0.0.1", "--port", str(self.port), "-t", "1", "-c", "128", "-np", "1",
             "-ctk", "f32", "-ctv", "f32", "-fa", "off", "--no-warmup", "--no-webui"],
            stdout=self.log, stderr=self.log,
        )

    def __enter__(self):
        for _ in range(300):
            if self.process.poll() is not None:
                break
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=5)
                return self
            except OSError:
                time.sleep(0.1)
        self.process.kill()
        raise RuntimeError(f"llama-server did not start, see {self.log.name}")

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait(10)
        self.log.close()

    def ask(self, path, **body):
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        return json.load(urllib.request.urlopen(request, timeout=60))


def check_llama_cpp(project, name, checkpoint, server):
    """llama.cpp loads every type, and has our token ids. In f32 its greedy ids are ours. With other types it
    rounds activations to that of the weights, or to 8 bits, before it multiplies: how many are ours is
    printed."""
    if server is None:
        says(f"skipped: {name}: there is no llama-server")
        return
    for kind in TYPES:
        file = project.folder / f"{name}-{kind}.gguf"
        same = total = 0
        with LlamaServer(server, file) as llama:
            for prompt in PROMPTS:
                ids = project.prompt_ids(checkpoint, prompt)
                theirs = llama.ask("/tokenize", content=prompt, add_special=True)["tokens"]
                assert ids == theirs, (prompt, ids, theirs)
                made = llama.ask("/completion", prompt=ids, n_predict=TOKENS, temperature=0.0, return_tokens=True,
                                 cache_prompt=False)["tokens"]
                ours = project.greedy(file, prompt)["token_ids"]
                made = made[: len(ours)]
                same += len(os.path.commonprefix([ours, made]))
                total += len(ours)
        if kind == "f32":
            assert same == total, (name, kind, same, total)
        says(f"{name}: llama.cpp loads {kind}: {same} of {total} greedy ids are ours")


# Shapes of published models, made small, with random weights of transformers' own.
KINDS = {
    "llama_2": dict(num_attention_heads=8, num_key_value_heads=2, rms_norm_eps=1e-5),
    "llama_3": dict(num_attention_heads=8, num_key_value_heads=2, max_position_embeddings=1024,
                    rope_parameters=dict(rope_type="llama3", rope_theta=500000.0, factor=8.0, low_freq_factor=1.0,
                                         high_freq_factor=4.0, original_max_position_embeddings=128)),
    "tinyllama": dict(num_attention_heads=16, num_key_value_heads=2, intermediate_size=352),
    "smollm": dict(hidden_size=144, num_attention_heads=9, num_key_value_heads=3, intermediate_size=384,
                   tie_word_embeddings=True, rope_parameters=dict(rope_type="default", rope_theta=100000.0)),
    "wide_heads": dict(num_attention_heads=4, num_key_value_heads=4, head_dim=64, tie_word_embeddings=True,
                       rope_parameters=dict(rope_type="linear", rope_theta=10000.0, factor=4.0)),
}  # fmt: skip


def make_kind(project, name, settings, checkpoint):
    """A directory as transformers saves it, with our tokenizer or, for LLaMA 3, a byte-level one."""
    from transformers import LlamaConfig, LlamaForCausalLM

    source = checkpoint
    vocabulary = 512
    if name in ("llama_3", "smollm"):
        source = ROOT / "tests/golden/byte_level_bpe"
        vocabulary = 416
    config = LlamaConfig(**{
        "vocab_size": vocabulary, "hidden_size": 128, "intermediate_size": 320, "num_hidden_layers": 3,
        "max_position_embeddings": 512, "initializer_range": 0.2, **settings,
    })  # fmt: skip
    torch.manual_seed(7)
    directory = project.folder / f"kind-{name}"
    LlamaForCausalLM(config).save_pretrained(directory, max_shard_size="300KB")
    for file in ("tokenizer.model", "tokenizer.json", "tokenizer_config.json"):
        if (source / file).exists():
            (directory / file).write_bytes((source / file).read_bytes())
    return directory


def check_kind(project, name, settings, checkpoint):
    """Imported, and through GGUF where there is a SentencePiece model: the greedy ids and the
    log-probabilities of a text are transformers'."""
    from tokenizers import Tokenizer
    from transformers import AutoModelForCausalLM

    directory = make_kind(project, name, settings, checkpoint)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    config = json.loads((directory / "tokenizer_config.json").read_text())
    name_of = lambda mark: mark["content"] if isinstance(mark, dict) else mark
    begin, end = (tokenizer.token_to_id(name_of(config[key])) for key in ("bos_token", "eos_token"))
    imported = project.folder / f"kind-{name}-imported"
    project.run("import", "--from", "hf", directory, "--output", imported)
    ours = [directory, imported]
    if (directory / "tokenizer.model").exists():
        file = project.export(directory, f"kind-{name}.gguf", "--format", "gguf", "--type", "f32")
        back = project.folder / f"kind-{name}-gguf"
        project.run("import", "--from", "gguf", file, "--output", back)
        ours.append(back)
    text = PROMPTS[1] + " " + " ".join(["and the people of the United States"] * 8)
    document = project.folder / "document.txt"
    document.write_text(text)
    ids = [begin, *tokenizer.encode(text, add_special_tokens=False).ids, end]
    assert len(ids) <= model.config.max_position_embeddings, "one window of the context"
    with torch.no_grad():
        logits = model(torch.tensor([ids[:-1]])).logits[0]
    expected = torch.nn.functional.cross_entropy(logits.double(), torch.tensor(ids[1:])).item()
    # Ids beyond the tokenizer's are never chosen.
    padding = list(range(tokenizer.get_vocab_size(), model.config.vocab_size)) or None
    for prompt in PROMPTS:
        prompt_ids = [begin, *tokenizer.encode(prompt, add_special_tokens=False).ids]
        with torch.no_grad():
            made = model.generate(torch.tensor([prompt_ids]), max_new_tokens=TOKENS, do_sample=False,
                                  eos_token_id=end, pad_token_id=0,
                                  suppress_tokens=padding)[0, len(prompt_ids):].tolist()
        for checkpoint in ours:
            found = project.greedy(checkpoint, prompt)["token_ids"]
            assert made[: len(found)] == found, (checkpoint, prompt, made, found)
    worst = 0
    for checkpoint in ours:
        found = project.run("eval", "--checkpoint", checkpoint, "--documents", document, "--json")
        found = json.loads(found.splitlines()[-1])
        assert found["tokens"] == len(ids) - 1, (found["tokens"], len(ids))
        worst = max(worst, abs(found["loss"] - expected))
    assert worst < 1e-4, (name, worst)
    says(f"{name}: transformers' greedy ids from {len(ours)} directories; nats per token differ by {worst:.1e}")


def check_awq(project, name, checkpoint):
    """A directory in 4 bits: its tensors are those that numpy unpacks, and mistral.rs loads it."""
    directory = project.export(
        checkpoint, f"{name}-awq", "--format", "awq", "--group-size", 32, "--calibration", project.folder,
        "--calibration-sequences", 16,
    )
    tensors = load_file(directory / "model.safetensors")
    back = project.folder / f"{name}-awq-back"
    project.run("import", "--from", "hf", directory, "--output", back)
    plain = load_file(back / "model.safetensors")
    order = [0, 4, 1, 5, 2, 6, 3, 7]
    unpack = lambda words: np.stack([words.view(np.uint32) >> (4 * place) & 15 for place in order], -1).reshape(
        len(words), -1)
    checked = 0
    for key in [key for key in tensors if key.endswith(".qweight")]:
        stem = key.removesuffix(".qweight")
        values, zeros = unpack(tensors[key]), unpack(tensors[f"{stem}.qzeros"])
        scales = tensors[f"{stem}.scales"].astype(np.float32)
        wide = lambda x: np.repeat(x, 32, axis=0)
        weight = (values.astype(np.float32) - wide(zeros).astype(np.float32)) * wide(scales)
        assert np.array_equal(weight.T, plain[f"{stem}.weight"]), stem
        checked += 1
    says(f"{name}: numpy unpacks {checked} matrices of AWQ as we do")
    if mistralrs is None:
        return
    try:
        runner = mistralrs.Runner(which=mistralrs.Which.Plain(model_id=str(directory)))
    except ValueError as error:
        says(f"skipped: {name}: mistral.rs does not load AWQ here ({str(error).splitlines()[0]})")
        return
    request = mistralrs.CompletionRequest(model="default", prompt=PROMPTS[0], max_tokens=TOKENS, temperature=0.0)
    theirs = runner.send_completion_request(request).choices[0].text
    ours = project.greedy(back, PROMPTS[0])["text"]
    same = len(os.path.commonprefix([ours, theirs]))
    says(f"{name}: mistral.rs loads AWQ: the first {same} of {len(ours)} characters are ours")


def main():
    project = Project(*sys.argv[1:3])
    server = sys.argv[3] if len(sys.argv) > 3 else None
    project.make_text()
    for name, shape in MODELS.items():
        checkpoint = project.train(name, shape)
        check_gguf(project, name, shape, checkpoint)
        directory = check_hugging_face(project, name, checkpoint)
        check_meta(project, name, shape, checkpoint)
        check_transformers_gguf(project, name, checkpoint, directory)
        check_mistralrs(project, name, directory)
        check_llama_cpp(project, name, checkpoint, server)
        if name == "heads_64":
            check_awq(project, name, checkpoint)
            for kind, settings in KINDS.items() if torch else ():
                check_kind(project, kind, settings, checkpoint)


if __name__ == "__main__":
    main()
