"""
MathVerse, MathVista and We-Math by their official rules, and the modality gap of any pair file.

Run as `python -m puma_trl.evaluation {run,generate,extract,score,report,gap} --help`.
"""
