"""What a prompt says where the whole problem is in the picture."""

VISION_ONLY_PROMPTS = (
    "Solve the problem in the picture.",
    "Read the problem in the image and solve it.",
    "The problem is shown in the picture. Solve it.",
    "Answer the question in the image.",
)
