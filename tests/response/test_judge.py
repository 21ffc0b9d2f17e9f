"""What an answer under a pin says of its model, row by row."""

import json

import pytest

from asgi_session_pin.response.errors import Error, read_error
from asgi_session_pin.response.judge import Verdict, implied_status, judge

CLIENT, REFUSED, UNPROVEN = Verdict.CLIENT, Verdict.REFUSED, Verdict.UNPROVEN
NO_ACCESS, UNAVAILABLE = Verdict.NO_ACCESS, Verdict.UNAVAILABLE

PINNED = "gpt-4o"


def openai(message: str, code: object = None, type: str = "invalid_request_error", param: object = None) -> str:
    return json.dumps({"error": {"message": message, "type": type, "param": param, "code": code}})


def anthropic(message: str, type: str = "invalid_request_error") -> str:
    return json.dumps({"type": "error", "error": {"type": type, "message": message}, "request_id": "req_1"})


def gemini(message: str, code: int, status: str) -> str:
    return json.dumps([{"error": {"code": code, "message": message, "status": status}}])


def litellm(message: str, code: str) -> str:
    return openai(message, code, "None", "None")


def openrouter(message: str, code: int, **metadata: object) -> str:
    return json.dumps({"error": {"message": message, "code": code, "metadata": metadata}, "user_id": "user_1"})


def vllm(message: str, code: int, type: str = "BadRequestError", param: object = None) -> str:
    return json.dumps({"error": {"message": message, "type": type, "param": param, "code": code}})


def old_vllm(message: str, code: int, type: str = "BadRequestError") -> str:
    return json.dumps({"object": "error", "message": message, "type": type, "param": None, "code": code})


def mistral(message: object, type: str, code: object = None) -> str:
    return json.dumps({"object": "error", "message": message, "type": type, "param": None, "code": code})


FOOTER = "\nReceived Model Group=gpt-4o\nAvailable Model Group Fallbacks=None"

# The bodies of gateways and providers, as they were met.
OPENAI_NO_MODEL = openai("The model `gpt-4o` does not exist or you do not have access to it.", "model_not_found")
OPENAI_NO_MODEL_BY_PARAM = openai("The requested model 'gpt-4o' does not exist.", "model_not_found", param="model")
OPENAI_NO_ACCESS = openai("Project `proj_x` does not have access to model `gpt-4o`", "model_not_found")
OPENAI_CONTEXT = openai(
    "This model's maximum context length is 128000 tokens. However, your messages resulted in 128001 tokens.",
    "context_length_exceeded",
    param="messages",
)
OPENAI_PARAMETER = openai(
    "Unsupported parameter: 'max_tokens' is not supported with this model.", "unsupported_parameter", param="max_tokens"
)
OPENAI_SCHEMA = openai(
    "Invalid schema for function 'find': None is not of type 'object'.",
    "invalid_function_parameters",
    param="tools[0].function.parameters",
)
OPENAI_SAFETY = openai("Your request was rejected as a result of our safety system.", "moderation_blocked")
OPENAI_POLICY = openai("Invalid prompt: your prompt was flagged as potentially violating our usage policy.")
OPENAI_KEY = openai("Incorrect API key provided: sk-x.", "invalid_api_key")
OPENAI_QUOTA = openai("You exceeded your current quota.", "insufficient_quota", "insufficient_quota")
OPENAI_TOKENS = openai(
    "Request too large for gpt-4o in organization org-x on tokens per min (TPM): Limit 30000, Requested 40000.",
    "rate_limit_exceeded",
    "tokens",
)
OPENAI_SERVER = openai("The server had an error while processing your request.", type="server_error")
AZURE_NO_DEPLOYMENT = '{"error":{"code":"DeploymentNotFound","message":"The API deployment does not exist."}}'
AZURE_UNKNOWN = '{"error":{"code":"unknown_model","message":"Unknown model: x","details":"Unknown model: x"}}'
AZURE_UNAVAILABLE = '{"error":{"code":"unavailable_model","message":"Unavailable model: x"}}'
AZURE_FILTER = json.dumps(
    {
        "error": {
            "message": "The response was filtered.",
            "param": "prompt",
            "code": "content_filter",
            "innererror": {"code": "ResponsibleAIPolicyViolation"},
        }
    }
)
AZURE_INNER = '{"error":{"message":"Filtered.","code":null,"innererror":{"code":"ResponsibleAIPolicyViolation"}}}'
AZURE_LIMIT = '{"error":{"code":"429","message":"Requests have exceeded the token rate limit of your tier."}}'
ANTHROPIC_NO_MODEL = anthropic("model: gpt-4o", "not_found_error")
ANTHROPIC_NOT_FOUND = anthropic("Not found", "not_found_error")
ANTHROPIC_CONTEXT = anthropic("prompt is too long: 210000 tokens > 200000 maximum")
ANTHROPIC_LIMIT = anthropic("input length and `max_tokens` exceed context limit: 190000 + 20000 > 200000")
ANTHROPIC_FILTER = anthropic("Output blocked by content filtering policy")
ANTHROPIC_TOOL = anthropic("tools.0.custom.input_schema: JSON schema is invalid.")
ANTHROPIC_LARGE = anthropic("Request exceeds the maximum size", "request_too_large")
ANTHROPIC_RATE = anthropic("This request would exceed your account's rate limit.", "rate_limit_error")
ANTHROPIC_OVERLOADED = anthropic("Overloaded", "overloaded_error")
ANTHROPIC_CREDIT = anthropic("Your credit balance is too low to access the Anthropic API.")
GEMINI_NO_MODEL = gemini("models/gpt-4o is not found for API version v1beta, or is not supported.", 404, "NOT_FOUND")
GEMINI_CONTEXT = gemini("The input token count (1200000) exceeds the maximum allowed.", 400, "INVALID_ARGUMENT")
GEMINI_TOOL = gemini("tools[0].function_declarations[0].name: not a name.", 400, "INVALID_ARGUMENT")
GEMINI_QUOTA = gemini("Quota exceeded for metric requests.", 429, "RESOURCE_EXHAUSTED")
GEMINI_BUSY = gemini("The model is overloaded. Please try again later.", 503, "UNAVAILABLE")
GEMINI_KEY = gemini("API key not valid.", 400, "INVALID_ARGUMENT")
MISTRAL_NO_MODEL = mistral("Invalid model: x", "invalid_model", "1500")
MISTRAL_FIELDS = mistral({"detail": [{"loc": ["body", "temperature"], "msg": "too hot"}]}, "invalid_request_error")
OPENROUTER_NO_MODEL = openrouter("gpt-4o is not a valid model ID", 400)
OPENROUTER_NO_ENDPOINT = openrouter("No endpoints found for gpt-4o.", 404)
OPENROUTER_NO_IMAGES = openrouter("No endpoints found that support image input", 404)
OPENROUTER_FLAGGED = openrouter(
    'gpt-4o requires moderation on Acme. Your input was flagged for "violence".', 403, reasons=["violence"]
)
OPENROUTER_CREDIT = openrouter("Insufficient credits. Add more using the settings.", 402)
OPENROUTER_PROVIDER = openrouter("Provider returned error", 502, provider_name="Acme")
LITELLM_NO_MODEL = litellm("{'error': '/chat/completions: Invalid model name passed in model=gpt-4o.'}", "400")
LITELLM_NO_MODEL_OBJECT = json.dumps(
    {
        "error": {
            "message": {"error": "/chat/completions: Invalid model name passed in model=gpt-4o."},
            "type": "None",
            "param": "None",
            "code": "400",
        }
    }
)
LITELLM_BAD = litellm("litellm.BadRequestError: OpenAIException - thinking budget is unknown" + FOOTER, "400")
LITELLM_CONTEXT = litellm("litellm.ContextWindowExceededError: litellm.BadRequestError: 1 > 0" + FOOTER, "400")
LITELLM_CONTENT = litellm("litellm.ContentPolicyViolationError: AzureException - no" + FOOTER, "400")
LITELLM_KEY = json.dumps(
    {
        "error": {
            "message": "key not allowed to access model. This key can only access models=['b']. Tried to access gpt-4o",
            "type": "key_model_access_denied",
            "param": "model",
            "code": "401",
        }
    }
)
LITELLM_NO_DEPLOYMENT = litellm("No deployments available for selected model. Passed model=gpt-4o." + FOOTER, "429")
VLLM_NO_MODEL = vllm("The model `gpt-4o` does not exist.", 404, "NotFoundError", "model")
OLD_VLLM_NO_MODEL = old_vllm("The model `gpt-4o` does not exist.", 404, "NotFoundError")
VLLM_CONTEXT = vllm("You passed 9000 input tokens.", 400, param="input_tokens")
OLD_VLLM_CONTEXT = old_vllm("This model's maximum context length is 2048 tokens.", 400)
GROQ_NO_MODEL = openai("The model `gpt-4o` does not exist or you do not have access to it.", "model_not_found")
GROQ_RETIRED = openai("The model `gpt-4o` has been decommissioned.", "model_decommissioned")
GROQ_TERMS = openai("The model `gpt-4o` requires terms acceptance.", "model_terms_required")
GROQ_TOO_LARGE = openai("Request too large for model `gpt-4o`: Limit 6000.", "rate_limit_exceeded", "tokens")
GROQ_TOOL = openai("Failed to call a function.", "tool_use_failed")
DEEPSEEK_NO_MODEL = openai("Model Not Exist", "invalid_request_error")
DEEPSEEK_CONTENT = openai("Content Exists Risk", "invalid_request_error")
DEEPSEEK_BALANCE = openai("Insufficient Balance", "invalid_request_error", "unknown_error")
OLLAMA_NO_MODEL = '{"error":"model \\"gpt-4o\\" not found, try pulling it first"}'
OLLAMA_NO_TOOLS = '{"error":"registry.ollama.ai/library/gpt-4o does not support tools"}'
XAI_NO_MODEL = '{"code":"Some requested entity was not found","error":"The model gpt-4o does not exist."}'
XAI_CONTENT = '{"code":"The caller lacks permission","error":"Content violates usage guidelines. Failed check."}'
LLAMA_CPP_CONTEXT = '{"error":{"code":400,"message":"the request exceeds","type":"exceed_context_size_error"}}'
ALIBABA_CONTENT = openai("Input data may contain inappropriate content.", "data_inspection_failed")
TOGETHER_NO_MODEL = openai("Unable to access model gpt-4o. Please visit the site.", "model_not_available")
THROUGHPUT = litellm("litellm.RateLimitError: BedrockException: Too many tokens, please wait." + FOOTER, "429")
FASTAPI_TEXT = '{"detail":"The model gpt-4o does not exist"}'
FASTAPI_ERROR = '{"detail":{"error":{"message":"no","code":"model_not_found"}}}'
FASTAPI_FACTS = '{"detail":{"message":"no","code":"model_not_found"}}'
FASTAPI_FIELDS = '{"detail":[{"loc":["body","messages"],"msg":"field required","type":"missing"}]}'
FLAT = '{"code":"model_not_found","error":"no"}'
PAGE = "<html><title>404 Not Found</title><center>nginx</center></html>"
NO_WORD = '{"error":{"message":"no"}}'
NOTHING = ""

# Status, body, and what it says of a name that has never served, and of one that has. It reads from the top like the
# table in docs/behaviour.md.
CASES = [
    # A refusal of the content, of any status.
    (400, OPENAI_CONTEXT, CLIENT, CLIENT),
    (500, OPENAI_CONTEXT, CLIENT, CLIENT),
    (429, OPENAI_CONTEXT, CLIENT, CLIENT),
    (404, OPENAI_PARAMETER, CLIENT, CLIENT),
    (400, OPENAI_SCHEMA, CLIENT, CLIENT),
    (400, OPENAI_SAFETY, CLIENT, CLIENT),
    (400, OPENAI_POLICY, CLIENT, CLIENT),
    (400, AZURE_FILTER, CLIENT, CLIENT),
    (503, AZURE_FILTER, CLIENT, CLIENT),
    (403, AZURE_INNER, CLIENT, CLIENT),
    (400, ANTHROPIC_CONTEXT, CLIENT, CLIENT),
    (429, ANTHROPIC_CONTEXT, CLIENT, CLIENT),
    (400, ANTHROPIC_LIMIT, CLIENT, CLIENT),
    (400, ANTHROPIC_FILTER, CLIENT, CLIENT),
    (400, ANTHROPIC_TOOL, CLIENT, CLIENT),
    (413, ANTHROPIC_LARGE, CLIENT, CLIENT),
    (400, GEMINI_CONTEXT, CLIENT, CLIENT),
    (400, GEMINI_TOOL, CLIENT, CLIENT),
    (403, OPENROUTER_FLAGGED, CLIENT, CLIENT),
    (400, LITELLM_CONTEXT, CLIENT, CLIENT),
    (400, LITELLM_CONTENT, CLIENT, CLIENT),
    (400, VLLM_CONTEXT, CLIENT, CLIENT),
    (500, VLLM_CONTEXT, CLIENT, CLIENT),
    (400, OLD_VLLM_CONTEXT, CLIENT, CLIENT),
    (400, GROQ_TOOL, CLIENT, CLIENT),
    (400, DEEPSEEK_CONTENT, CLIENT, CLIENT),
    (403, XAI_CONTENT, CLIENT, CLIENT),
    (400, LLAMA_CPP_CONTEXT, CLIENT, CLIENT),
    (400, ALIBABA_CONTENT, CLIENT, CLIENT),
    # The error says that it is the name.
    (404, OPENAI_NO_MODEL, REFUSED, REFUSED),
    (400, OPENAI_NO_MODEL_BY_PARAM, REFUSED, REFUSED),
    (403, OPENAI_NO_ACCESS, REFUSED, REFUSED),
    (404, AZURE_NO_DEPLOYMENT, REFUSED, REFUSED),
    (400, AZURE_UNKNOWN, REFUSED, REFUSED),
    (400, AZURE_UNAVAILABLE, REFUSED, REFUSED),
    (404, ANTHROPIC_NO_MODEL, REFUSED, REFUSED),
    (404, GEMINI_NO_MODEL, REFUSED, REFUSED),
    (400, MISTRAL_NO_MODEL, REFUSED, REFUSED),
    (400, OPENROUTER_NO_MODEL, REFUSED, REFUSED),
    (404, OPENROUTER_NO_ENDPOINT, REFUSED, REFUSED),
    (400, LITELLM_NO_MODEL, REFUSED, REFUSED),
    (400, LITELLM_NO_MODEL_OBJECT, REFUSED, REFUSED),
    (401, LITELLM_KEY, REFUSED, REFUSED),
    (404, VLLM_NO_MODEL, REFUSED, REFUSED),
    (404, OLD_VLLM_NO_MODEL, REFUSED, REFUSED),
    (404, GROQ_NO_MODEL, REFUSED, REFUSED),
    (400, GROQ_RETIRED, REFUSED, REFUSED),
    (400, GROQ_TERMS, REFUSED, REFUSED),
    (404, OLLAMA_NO_MODEL, REFUSED, REFUSED),
    (400, XAI_NO_MODEL, REFUSED, REFUSED),
    (400, TOGETHER_NO_MODEL, REFUSED, REFUSED),
    (404, FASTAPI_TEXT, REFUSED, REFUSED),
    (404, FASTAPI_ERROR, REFUSED, REFUSED),
    (422, FASTAPI_FACTS, REFUSED, REFUSED),
    (402, FLAT, REFUSED, REFUSED),
    # Of a name that has never served any other 4xx may be about it, of one that has a few may close it.
    (400, LITELLM_BAD, UNPROVEN, CLIENT),
    (400, DEEPSEEK_NO_MODEL, UNPROVEN, CLIENT),
    (400, OLLAMA_NO_TOOLS, UNPROVEN, CLIENT),
    (400, GEMINI_KEY, UNPROVEN, CLIENT),
    (400, ANTHROPIC_CREDIT, UNPROVEN, CLIENT),
    (422, MISTRAL_FIELDS, UNPROVEN, CLIENT),
    (422, FASTAPI_FIELDS, UNPROVEN, CLIENT),
    (400, PAGE, UNPROVEN, CLIENT),
    (400, NOTHING, UNPROVEN, CLIENT),
    (405, OPENAI_NO_MODEL, UNPROVEN, CLIENT),
    (451, NO_WORD, UNPROVEN, CLIENT),
    (499, NO_WORD, UNPROVEN, CLIENT),
    (401, OPENAI_KEY, UNPROVEN, NO_ACCESS),
    (402, OPENROUTER_CREDIT, UNPROVEN, NO_ACCESS),
    (402, DEEPSEEK_BALANCE, UNPROVEN, NO_ACCESS),
    (403, NO_WORD, UNPROVEN, NO_ACCESS),
    (404, ANTHROPIC_NOT_FOUND, UNPROVEN, NO_ACCESS),
    (404, OPENROUTER_NO_IMAGES, UNPROVEN, NO_ACCESS),
    (404, NOTHING, UNPROVEN, NO_ACCESS),
    # Out, for now.
    (408, NO_WORD, UNAVAILABLE, UNAVAILABLE),
    (413, GROQ_TOO_LARGE, UNAVAILABLE, UNAVAILABLE),
    (429, OPENAI_QUOTA, UNAVAILABLE, UNAVAILABLE),
    (429, OPENAI_TOKENS, UNAVAILABLE, UNAVAILABLE),
    (429, AZURE_LIMIT, UNAVAILABLE, UNAVAILABLE),
    (429, ANTHROPIC_RATE, UNAVAILABLE, UNAVAILABLE),
    (429, GEMINI_QUOTA, UNAVAILABLE, UNAVAILABLE),
    (429, LITELLM_NO_DEPLOYMENT, UNAVAILABLE, UNAVAILABLE),
    (429, OPENAI_NO_MODEL, UNAVAILABLE, UNAVAILABLE),
    (429, THROUGHPUT, UNAVAILABLE, UNAVAILABLE),
    (500, OPENAI_SERVER, UNAVAILABLE, UNAVAILABLE),
    (500, NOTHING, UNAVAILABLE, UNAVAILABLE),
    (502, OPENROUTER_PROVIDER, UNAVAILABLE, UNAVAILABLE),
    (503, GEMINI_BUSY, UNAVAILABLE, UNAVAILABLE),
    (503, OPENAI_NO_MODEL, UNAVAILABLE, UNAVAILABLE),
    (504, PAGE, UNAVAILABLE, UNAVAILABLE),
    (529, ANTHROPIC_OVERLOADED, UNAVAILABLE, UNAVAILABLE),
    # Every other 4xx.
    (409, OPENAI_NO_MODEL, CLIENT, CLIENT),
    (413, NO_WORD, CLIENT, CLIENT),
    (425, NO_WORD, CLIENT, CLIENT),
    (302, NOTHING, CLIENT, CLIENT),
]


@pytest.mark.parametrize(("status", "body", "unproven", "proven"), CASES)
def test_an_answer_says_of_its_model(status: int, body: str, unproven: Verdict, proven: Verdict) -> None:
    error = read_error(body.encode())
    assert judge(status, error, PINNED, is_proven=False) is unproven
    assert judge(status, error, PINNED, is_proven=True) is proven


# An error inside of a 200 is judged by the status that its code or type stands for.
INSIDE = [
    (OPENAI_CONTEXT, CLIENT, CLIENT),
    (LITELLM_CONTEXT, CLIENT, CLIENT),
    (AZURE_FILTER, CLIENT, CLIENT),
    (VLLM_CONTEXT, CLIENT, CLIENT),
    (OPENAI_NO_MODEL, REFUSED, REFUSED),
    (AZURE_NO_DEPLOYMENT, REFUSED, REFUSED),
    (ANTHROPIC_NO_MODEL, REFUSED, REFUSED),
    (openai("no"), UNPROVEN, CLIENT),
    (anthropic("no"), UNPROVEN, CLIENT),
    (anthropic("no", "authentication_error"), UNPROVEN, NO_ACCESS),
    (anthropic("no", "billing_error"), UNPROVEN, NO_ACCESS),
    (anthropic("no", "permission_error"), UNPROVEN, NO_ACCESS),
    (ANTHROPIC_NOT_FOUND, UNPROVEN, NO_ACCESS),
    (gemini("no", 403, "PERMISSION_DENIED"), UNPROVEN, NO_ACCESS),
    (ANTHROPIC_RATE, UNAVAILABLE, UNAVAILABLE),
    (ANTHROPIC_OVERLOADED, UNAVAILABLE, UNAVAILABLE),
    (anthropic("no", "api_error"), UNAVAILABLE, UNAVAILABLE),
    (anthropic("no", "timeout_error"), UNAVAILABLE, UNAVAILABLE),
    (GEMINI_QUOTA, UNAVAILABLE, UNAVAILABLE),
    (GEMINI_BUSY, UNAVAILABLE, UNAVAILABLE),
    (GROQ_TOO_LARGE, UNAVAILABLE, UNAVAILABLE),
    (OPENAI_SERVER, UNAVAILABLE, UNAVAILABLE),
    # No word tells: a bare number, or nothing.
    (openai("no", 400, "None"), UNAVAILABLE, UNAVAILABLE),
    (openai("no", "404", "None"), UNAVAILABLE, UNAVAILABLE),
    (OLD_VLLM_NO_MODEL.replace("NotFoundError", ""), UNAVAILABLE, UNAVAILABLE),
    (OPENROUTER_PROVIDER, UNAVAILABLE, UNAVAILABLE),
    (OLLAMA_NO_MODEL, UNAVAILABLE, UNAVAILABLE),
    (NO_WORD, UNAVAILABLE, UNAVAILABLE),
    (NOTHING, UNAVAILABLE, UNAVAILABLE),
]


@pytest.mark.parametrize(("body", "unproven", "proven"), INSIDE)
def test_an_error_inside_of_a_200_says_of_its_model(body: str, unproven: Verdict, proven: Verdict) -> None:
    error = read_error(body.encode())
    assert judge(implied_status(error), error, PINNED, is_proven=False) is unproven
    assert judge(implied_status(error), error, PINNED, is_proven=True) is proven


# The pinned name, and a text that is about it or not.
TEXTS = [
    ("gpt-4o", "The model `gpt-4o` does not exist", True),
    ("gpt-4o", "THE MODEL GPT-4O DOES NOT EXIST", True),
    ("gpt-4o", "model gpt-4o not found", True),
    ("gpt-4o", "gpt-4o is not available in your region", True),
    ("gpt-4o", "gpt-4o doesn't exist", True),
    ("gpt-4o", "unknown model: gpt-4o", True),
    ("gpt-4o", "Invalid model gpt-4o.", True),
    ("gpt-4o", "You have no access to 'gpt-4o'", True),
    ("gpt-4o", "The key may not have access to the model gpt-4o", True),
    ("gpt-4o", "Bad request. The model gpt-4o is not supported. Try another one.", True),
    # So many words between, and no more; in one sentence.
    ("gpt-4o", "unknown one two three four five six gpt-4o", True),
    ("gpt-4o", "unknown one two three four five six seven gpt-4o", False),
    ("gpt-4o", "gpt-4o one two three four five six not found", True),
    ("gpt-4o", "gpt-4o one two three four five six seven not found", False),
    ("gpt-4o", "gpt-4o -- one -- two -- three -- not found", True),
    ("gpt-4o", "The file was not found. It was sent to gpt-4o.", False),
    ("gpt-4o", "The file was not found\nModel: gpt-4o", False),
    # What the model can't do.
    ("gpt-4o", "Tools are not supported for gpt-4o", False),
    ("gpt-4o", "'temperature' is not supported with gpt-4o", False),
    ("gpt-4o", "Streaming is not available in gpt-4o or gpt-4.1", False),
    ("gpt-4o", "Images are not supported by the model gpt-4o.", False),
    ("gpt-4o", "n is not supported when using gpt-4o", False),
    ("gpt-4o", "gpt-4o is not supported for this account", True),
    ("gpt-4o", "Not supported: gpt-4o", True),
    ("gpt-4o", "For gpt-4o tools are not supported for now, and gpt-4o", True),
    # The name in the text for another reason.
    ("gpt-4o", "gpt-4o: the messages must alternate", False),
    ("gpt-4o", "gpt-4o", False),
    ("gpt-4o", "not found", False),
    ("gpt-4o", "", False),
    # Other names that it is a part of, and a part that it has.
    ("gpt-4o", "gpt-4o-mini not found", False),
    ("gpt-4o", "gpt-4o.1 not found", False),
    ("gpt-4o", "gpt-4o:free not found", False),
    ("gpt-4o", "gpt-4o/fast not found", False),
    ("gpt-4o", "xgpt-4o not found", False),
    ("gpt-4o", "my-gpt-4o not found", False),
    ("gpt-4o", "openai/gpt-4o not found", False),
    ("gpt-4o", "models/gpt-4o not found", True),
    ("gpt-4o", "publishers/google/models/gpt-4o was not found", True),
    ("gpt-4", "gpt-4o not found", False),
    ("openai/gpt-4o", "openai/gpt-4o not found", True),
    ("openai/gpt-4o", "azure/openai/gpt-4o not found", False),
    ("gpt-4o:free", "gpt-4o:free not found", True),
    ("gpt-4o:free", "gpt-4o not found", False),
    ("claude(high)", "claude(high) not found", True),
    ("@cf/llama", "@cf/llama not found", True),
    ("a", "a not found", True),
    ("a", "a page was not there", False),
    ("unknown", "unknown not found", True),
    ("x.*", "xyz not found", False),
]


@pytest.mark.parametrize(("model", "text", "is_about_it"), TEXTS)
def test_a_text_is_about_the_name(model: str, text: str, is_about_it: bool) -> None:
    error = Error(text=text)
    assert judge(400, error, model, is_proven=True) is (REFUSED if is_about_it else CLIENT)
    assert judge(404, error, model, is_proven=True) is (REFUSED if is_about_it else NO_ACCESS)


def test_a_code_tells_more_than_a_word_of_the_text() -> None:
    error = read_error(openai("The model `gpt-4o-moderation` does not exist.", "model_not_found").encode())
    assert judge(404, error, "gpt-4o-moderation", is_proven=True) is REFUSED


def test_the_word_that_tells_more_gives_the_status() -> None:
    for code, status in (("rate_limit_exceeded", 429), ("model_not_found", 404), ("server_error", 500), ("x", 400)):
        assert implied_status(read_error(openai("no", code).encode())) == status


def test_only_a_refusal_and_an_unproven_name_blame_the_name() -> None:
    assert {verdict for verdict in Verdict if verdict.blames_the_name} == {REFUSED, UNPROVEN}


@pytest.mark.parametrize(
    ("text", "is_about_it"),
    [
        ("gpt-4o" + " " * 4000 + "not found", True),
        ("gpt-4o" + "!" * 4000 + "not found", True),
        ("gpt-4o " + ("!" * 40 + " ") * 90, False),
        ("gpt-4o " * 500, False),
        ("unknown " * 500 + "gpt-4o", True),
        ("not supported for gpt-4o. " * 150, False),
        ("!" * 4000 + "gpt-4o not found", True),
        (". " * 2000 + "gpt-4o not found", True),
    ],
)
def test_a_text_that_is_made_to_take_long_is_judged_like_any(text: str, is_about_it: bool) -> None:
    assert judge(400, Error(text=text), PINNED, is_proven=True) is (REFUSED if is_about_it else CLIENT)


@pytest.mark.parametrize(
    ("status", "message", "model", "verdict"),
    [
        (503, "moderation service is temporarily unavailable", PINNED, UNAVAILABLE),
        (502, "the request was too large for the buffer of the proxy", PINNED, UNAVAILABLE),
        (500, "This model's maximum context length is 4096 tokens", PINNED, CLIENT),
        (400, "Your input was flagged by moderation", PINNED, CLIENT),
        (404, "model 'omni-moderation' does not exist", "omni-moderation", REFUSED),
    ],
)
def test_words_on_the_content_are_none_where_an_outage_or_a_name_speaks_like_that(
    status: int, message: str, model: str, verdict: Verdict
) -> None:
    assert judge(status, read_error(openai(message).encode()), model, is_proven=True) is verdict
