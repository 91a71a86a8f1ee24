/** The first screen: presets, interventions, and the conversation in columns. */
import { html } from "../h.js";
import { Conversation, Opened } from "../components/conversation.js";
import { Interventions } from "../components/interventions.js";
import { Presets } from "../components/presets.js";
import { Settings } from "../components/settings.js";

export function Steer() {
  return html`<div class="stack opened"><${Opened} /></div>
    <div class="steer">
      <section class="side" aria-label="What is steered">
        <${Presets} />
        <${Interventions} />
        <${Settings} />
      </section>
      <section class="talk" aria-label="Conversation"><${Conversation} /></section>
    </div>`;
}
