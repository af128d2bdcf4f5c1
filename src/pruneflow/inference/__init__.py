"""How a pruned model is run, and how long that takes."""

# Names of the registries in `forms` and `engines`, here so that a configuration can be checked
# without importing torch.
FORMS = ("dense", "masked", "compact", "sparse")
ENGINES = ("eager", "onnxruntime", "openvino")
EAGER = ENGINES[0]
FORMATS = ("safetensors", "onnx", "torch_export", "huggingface")
