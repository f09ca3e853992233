// Records a sentence, shows the level, and hands the bytes (webm/opus or what the browser has) on.
export default {
  render({ model, el }) {
    const [text, button, skip, meter, line] =
      ["p", "button", "button", "meter", "p"].map((tag) => el.appendChild(document.createElement(tag)));
    el.classList.add("speechgpt-microphone");
    Object.assign(text.style, { fontSize: "1.3em", margin: "0.4em 0" });
    Object.assign(meter, { min: 0, max: 1, low: 0.02, high: 0.9, optimum: 0.3, value: 0 });
    line.setAttribute("role", "status");
    skip.textContent = "Skip";
    let recorder = null;

    const show = () => {
      text.textContent = model.get("prompt");
      line.textContent = model.get("message");
      button.textContent = recorder ? "Stop" : "Record";
      button.disabled = skip.disabled = !model.get("prompt");
    };
    const say = (message) => { model.set("message", message); model.save_changes(); show(); };

    const start = async () => {
      if (!navigator.mediaDevices || !window.MediaRecorder) {
        say("This page has no microphone: open it on this computer (localhost) or by https, or " +
            "record a folder of wavs and name it in `recordings`.");
        return;
      }
      let stream;
      try {
        stream = await navigator.mediaDevices.getUserMedia({ audio: { echoCancellation: false,
          noiseSuppression: false, autoGainControl: false } });
      } catch (error) {
        say(`The microphone was refused (${error.name}): allow it in the address bar and press ` +
            "Record again, or record a folder of wavs and name it in `recordings`.");
        return;
      }
      const context = new AudioContext(), analyser = context.createAnalyser();
      context.createMediaStreamSource(stream).connect(analyser);
      const samples = new Float32Array(analyser.fftSize), parts = [];
      const watch = () => {
        if (!recorder) { meter.value = 0; return; }
        analyser.getFloatTimeDomainData(samples);
        meter.value = Math.max(...samples.map(Math.abs));
        requestAnimationFrame(watch);
      };
      recorder = new MediaRecorder(stream);
      recorder.ondataavailable = (event) => parts.push(event.data);
      recorder.onstop = async () => {
        const blob = new Blob(parts, { type: recorder.mimeType });
        stream.getTracks().forEach((track) => track.stop());
        context.close();
        recorder = null;
        say("checking …");
        const bytes = new DataView(await blob.arrayBuffer());
        model.send({ kind: "recording", type: blob.type }, undefined, [bytes]);
      };
      recorder.start();
      watch();
      say("recording …"); // nothing that was said of the last sentence stays beside this one
    };
    button.onclick = () => (recorder ? recorder.stop() : start());
    skip.onclick = () => model.send({ kind: "skip" });
    model.on("change:prompt", show);
    model.on("change:message", show);
    show();
  },
};
