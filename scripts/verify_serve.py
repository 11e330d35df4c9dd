"""Asks a server of `altiplano serve` as users of OpenAI's Python package do, and writes two small tasks for
lm_eval, one of likelihoods and one of generation, into a folder. See scripts/verify_serve.

    python verify_serve.py URL FOLDER
"""

import json
import pathlib
import sys

import openai

url, folder = sys.argv[1], pathlib.Path(sys.argv[2])
client = openai.OpenAI(base_url=url + "/v1", api_key="none", max_retries=0)

models = [model.id for model in client.models.list()]
assert models == ["model"], models
assert client.models.retrieve("model").id == "model"

ask = dict(model="model", prompt="The people", max_tokens=20, seed=7, temperature=0.8)
whole = client.completions.create(**ask, n=2, logprobs=3)
assert [choice.index for choice in whole.choices] == [0, 1]
assert len(whole.choices[0].logprobs.tokens) == len(whole.choices[0].logprobs.token_logprobs)
assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens

stream = client.completions.create(**ask, stream=True, stream_options={"include_usage": True})
text, usage = "", None
for event in stream:
    usage = event.usage or usage
    text += "".join(choice.text for choice in event.choices)
assert text == whole.choices[0].text, (text, whole.choices[0].text)
assert usage.completion_tokens > 0

messages = [{"role": "user", "content": "Say something."}]
chat = client.chat.completions.create(
    model="model", messages=messages, max_completion_tokens=12, logprobs=True, top_logprobs=2, temperature=0
)
assert chat.choices[0].message.role == "assistant"
assert len(chat.choices[0].logprobs.content[0].top_logprobs) == 2
chunks = client.chat.completions.create(
    model="model", messages=messages, max_completion_tokens=12, temperature=0, stream=True
)
said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
assert said == chat.choices[0].message.content

schema = {
    "type": "object",
    "properties": {"yes": {"type": "boolean"}},
    "required": ["yes"],
    "additionalProperties": False,
}
form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
strict = client.chat.completions.create(
    model="model", messages=messages, max_completion_tokens=40, response_format=form, seed=1
)
assert isinstance(json.loads(strict.choices[0].message.content)["yes"], bool)

for wrong, kind in [
    (dict(temperature=-1), openai.BadRequestError),
    (dict(model="other"), openai.NotFoundError),
    (dict(suffix="x"), openai.BadRequestError),
    (dict(max_tokens=10**6), openai.BadRequestError),
]:
    try:
        client.completions.create(**{**ask, **wrong})
    except kind as error:
        print(f"{kind.__name__}: {error.body['message'][:90]}")
    else:
        raise AssertionError(f"{wrong} was taken")
print("openai: every answer is as it should be")

folder.mkdir(parents=True)
rows = [
    {"question": "The people of the United", "choices": [" States", " whale"], "answer": 0},
    {"question": "Call me", "choices": [" Congress", " Ishmael"], "answer": 1},
    {"question": "The Congress of the", "choices": [" United States", " sea"], "answer": 0},
    {"question": "The captain of the", "choices": [" ship", " law"], "answer": 0},
] * 4
data = folder / "rows.json"
data.write_text("".join(json.dumps(row) + "\n" for row in rows))
common = f"""dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
doc_to_text: "{{{{question}}}}"
num_fewshot: 0
"""
(folder / "choice.yaml").write_text(
    "task: verify_choice\noutput_type: multiple_choice\n"
    + common
    + "doc_to_choice: choices\ndoc_to_target: answer\ntarget_delimiter: ''\n"
    + "metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]\n"
)
(folder / "generate.yaml").write_text(
    "task: verify_generate\noutput_type: generate_until\n"
    + common
    + "doc_to_target: '{{choices[answer]}}'\n"
    + "generation_kwargs: {until: ['\\n', '.', '?', '!', ';', 'Q:'], max_gen_toks: 8, do_sample: false}\n"
    + "metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]\n"
)
