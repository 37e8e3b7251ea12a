import os

# onnxruntime (1.32 does) notes each use of it under ~/.cache/Microsoft and sends it to Microsoft, unless it is told not
# to before it is first imported; its disable_telemetry_events() comes too late.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
